"""Where Tenants are kept: on a cluster, or in a file that `quire up` serves.

The file keeps its comments and its other documents: only a tenant's keys are written anew, in the place where they stand, and the whole
is replaced at once. This module must not know what is changed, or why.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from quire_cli.cluster.rollback import FIELD_MANAGER, gitops_owner
from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.manifest_files import Document, read_documents
from quire_cli.rendering import to_yaml
from quire_cli.tenant.documents import TenantDocument, keys_of
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import TENANT

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class TenantStore(Protocol):
    """The tenants of one file or namespace."""

    async def list(self) -> Sequence[TenantDocument]:
        """All of them, by name."""

    async def get(self, name: str) -> TenantDocument:
        """One of them. CommandError that names the others."""

    async def create(self, document: TenantDocument) -> Sequence[str]:
        """Write a new one; what to tell about it. CommandError if the name is taken."""

    async def write_keys(self, document: TenantDocument) -> Sequence[str]:
        """Write a known one's keys; what to tell about it. CommandError if somebody else changed it meanwhile."""


class ClusterTenants:
    """In a namespace of a cluster."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def list(self) -> Sequence[TenantDocument]:
        """By name."""
        items, _ = await self._client.list(TENANT, self._namespace)
        return sorted(items, key=lambda item: str(item["metadata"]["name"]))

    async def get(self, name: str) -> TenantDocument:
        """As the API server has it."""
        try:
            return await self._client.get(TENANT, self._namespace, name)
        except KubeError as error:
            if error.status != 404 or "could not find the requested resource" in error.message:
                raise
        raise _unknown(name, f"namespace {self._namespace}", [one["metadata"]["name"] for one in await self.list()])

    async def create(self, document: TenantDocument) -> Sequence[str]:
        """By server-side apply, so that a later apply of a file can take fields over."""
        name = document["metadata"]["name"]
        if name in [one["metadata"]["name"] for one in await self.list()]:
            raise _taken(name, f"namespace {self._namespace}")
        placed = {**document, "metadata": {**document["metadata"], "namespace": self._namespace}}
        await self._client.apply(TENANT, self._namespace, name, placed, field_manager=FIELD_MANAGER)
        return [f"Tenant {name} is in namespace {self._namespace}; routers know it within two seconds"]

    async def write_keys(self, document: TenantDocument) -> Sequence[str]:
        """The resourceVersion makes a change by somebody else in between an error."""
        meta = document["metadata"]
        body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "spec": {"keys": keys_of(document)}}
        try:
            await self._client.merge_patch(TENANT, self._namespace, meta["name"], body, field_manager=FIELD_MANAGER)
        except KubeError as error:
            if error.status != 409:
                raise
            message = f"{meta['name']} was changed by somebody else just now; try again"
            raise CommandError(message, exit_code=EXIT_FAILED) from None
        lines = ["Routers know it within two seconds"]
        if owner := gitops_owner(document):
            lines.append(f"{owner} undoes this at its next sync, unless its source is changed, too.")
        elif _LAST_APPLIED in (meta.get("annotations") or {}):
            lines.append("Change the file that it was applied from, too: the next kubectl apply of it would undo this.")
        return lines


class FileTenants:
    """In one YAML file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def list(self) -> Sequence[TenantDocument]:
        """By name; none if there is no file."""
        return sorted((one.data for one in self._documents()), key=lambda data: str(data["metadata"]["name"]))

    async def get(self, name: str) -> TenantDocument:
        """As it is written."""
        known = {data["metadata"]["name"]: data for data in await self.list()}
        if name not in known:
            raise _unknown(name, str(self._path), list(known))
        return dict(known[name])

    async def create(self, document: TenantDocument) -> Sequence[str]:
        """At the file's end."""
        name = document["metadata"]["name"]
        if name in [data["metadata"]["name"] for data in await self.list()]:
            raise _taken(name, str(self._path))
        before = _read(self._path) if self._path.exists() else ""
        gap = "" if not before or before.endswith("\n") else "\n"
        _replace(self._path, before + gap + to_yaml([document]))
        return [
            f"Tenant {name} is in {self._path}; serve it with quire up FILE... {self._path} (one that runs follows it)"
        ]

    async def write_keys(self, document: TenantDocument) -> Sequence[str]:
        """In the place of the old ones."""
        name = document["metadata"]["name"]
        text = _read(self._path)
        _replace(self._path, with_keys(text, name, keys_of(document)))
        return [f"{self._path} is changed; a quire up that serves it follows within two seconds"]

    def _documents(self) -> Sequence[Document]:
        if not self._path.exists():
            return []
        return [one for one in read_documents(self._path) if one.kind == TENANT.kind and _named(one.data)]


def with_keys(text: str, name: str, keys: Sequence[dict[str, str]]) -> str:
    """The YAML text with other keys of the Tenant `name`, and everything else as it was."""
    spec = _spec_node(text, name)
    found = next((value for key, value in spec.value if key.value == "keys"), None)
    lines = [json.dumps(key, ensure_ascii=False) for key in keys]
    if found is None:
        first = spec.value[0][0].start_mark if spec.value and not spec.flow_style else None
        if first is None:
            start, end = spec.start_mark.index, spec.end_mark.index
            inner = text[start + 1 : end - 1].strip()
            return f"{text[:start]}{{keys: [{', '.join(lines)}]{', ' if inner else ''}{inner}}}{text[end:]}"
        block = _block(lines, first.column)
        return f"{text[: first.index]}keys:{block}\n{' ' * first.column}{text[first.index :]}"
    start = found.start_mark.index
    if isinstance(found, yaml.SequenceNode) and not found.flow_style:
        column = found.start_mark.column
        # An item may stand right below its key, a list in brackets must not.
        items = f"\n{' ' * column}".join(f"- {line}" for line in lines) if lines else " []"
        return text[:start] + items + text[_end(found) :]
    return f"{text[:start]}[{', '.join(lines)}]{text[_end(found) :]}"


def _block(lines: Sequence[str], column: int) -> str:
    return "".join(f"\n{' ' * column}  - {line}" for line in lines) if lines else " []"


def _spec_node(text: str, name: str) -> yaml.MappingNode:
    for root in yaml.compose_all(text, Loader=yaml.SafeLoader):
        if not isinstance(root, yaml.MappingNode):
            continue
        fields = {key.value: value for key, value in root.value}
        meta = fields.get("metadata")
        names = {key.value: value.value for key, value in meta.value} if isinstance(meta, yaml.MappingNode) else {}
        if getattr(fields.get("kind"), "value", None) == TENANT.kind and names.get("name") == name:
            spec = fields.get("spec")
            if isinstance(spec, yaml.MappingNode):
                return spec
    raise CommandError(f"Tenant {name} has no spec that can be changed; write it as `spec: {{}}`")


def _end(node: yaml.Node) -> int:
    """Where its text ends, comments after it left out."""
    children = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) and not node.flow_style else ()
    if not children:
        return int(node.end_mark.index)
    last: Any = children[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _named(data: Any) -> bool:
    return isinstance(data.get("metadata"), dict) and isinstance(data["metadata"].get("name"), str)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from None


def _replace(path: Path, text: str) -> None:
    """In one step: a `quire up` that follows the file sees the old one or the new one."""
    target = path.resolve()
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        if target.exists():
            beside.chmod(target.stat().st_mode & 0o777)
        beside.replace(target)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}", exit_code=EXIT_FAILED) from None


def _unknown(name: str, place: str, known: Sequence[str]) -> CommandError:
    hint = f"there are: {', '.join(known)}" if known else "there is none; make it with quire tenant create"
    return CommandError(f"Tenant {name} is not in {place}; {hint}", exit_code=EXIT_FAILED)


def _taken(name: str, place: str) -> CommandError:
    message = f"Tenant {name} is in {place} already; give it another key with quire tenant rotate {name}"
    return CommandError(message, exit_code=EXIT_FAILED)
