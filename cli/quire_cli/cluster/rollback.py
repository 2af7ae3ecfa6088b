"""`quire rollback`: writes the pod-shaping part of an earlier revision back into a service's spec. The operator then does what it does
with any changed spec, canary steps included; it finds the stored revision again, so pods that still run are not restarted.

How a revision is stored is told by `quire_operator.decision`. This module must not know pods.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from quire_cli.cluster.found import KubeObject, condition, find_revisions, get_service, is_paused, is_seen
from quire_cli.errors import EXIT_FAILED, CommandError
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import INFERENCE_SERVICE
from quire_operator.api.validation import InvalidResourceError, parse_service
from quire_operator.revisions import POD_SHAPING

FIELD_MANAGER = "quire-cli"
SHAPING_FIELDS = tuple(sorted(to_camel(field) for field in POD_SHAPING))
_ABSENT = object()

_GITOPS_MARKS = (
    ("annotations", "argocd.argoproj.io/tracking-id", "Argo CD"),
    ("labels", "argocd.argoproj.io/instance", "Argo CD"),
    ("labels", "kustomize.toolkit.fluxcd.io/name", "Flux"),
    ("labels", "helm.toolkit.fluxcd.io/name", "Flux"),
)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What a rollback writes."""

    revision: str
    """Name of the revision that it goes back to."""
    number: int
    """Its number."""
    document: KubeObject
    """The service with the new spec; its resourceVersion makes a change by somebody else in between an error."""
    changes: tuple[str, ...]
    """One line per field, as "engine.maxNumSeqs: 64 -> 32"."""


async def roll_back(client: KubeClient, namespace: str, name: str, *, to: str | None, force: bool) -> list[str]:
    """Carries it out. What to tell the user; CommandError if there is nothing to go back to or it would not last."""
    document = await get_service(client, namespace, name)
    if (owner := gitops_owner(document)) and not force:
        message = (
            f"{name} is kept as it is in Git by {owner}, which would undo this; revert the change there, "
            f"or suspend {owner} for it and use --force"
        )
        raise CommandError(message, exit_code=EXIT_FAILED)
    revisions = await find_revisions(client, document)
    if revisions is None:
        raise CommandError("revisions cannot be read: permission to list controllerrevisions (apps) is missing")
    plan = plan_rollback(document, revisions, to)
    try:
        await client.replace(INFERENCE_SERVICE, namespace, name, plan.document, field_manager=FIELD_MANAGER)
    except KubeError as error:
        if error.status != 409:
            raise
        message = f"{name} was changed by somebody else just now; look at it with quire status {name}, then try again"
        raise CommandError(message, exit_code=EXIT_FAILED) from None
    return _told(document, plan)


def gitops_owner(document: Mapping[str, Any]) -> str | None:
    """The tool that keeps this object as it is in Git, by the marks that such tools leave."""
    metadata = document["metadata"]
    return next((tool for part, key, tool in _GITOPS_MARKS if key in (metadata.get(part) or {})), None)


def plan_rollback(document: KubeObject, revisions: Sequence[KubeObject], to: str | None) -> Rollback:
    """To the revision that `to` names (its name or number), or to the one before the present one. `revisions`: newest first."""
    name = document["metadata"]["name"]
    current = _current(document, revisions)
    target = _before(document, revisions, current) if to is None else _named(name, revisions, to)
    shape = dict(target["data"].get("shape") or {})
    if "model" not in shape:
        message = (
            f"revision {_shown_name(target, name)} of {name} holds no spec to go back to; apply its manifest again"
        )
        raise CommandError(message, exit_code=EXIT_FAILED)
    image = target["data"].get("image")
    if image and (current or revisions[0])["data"].get("image") != image:
        shape["engine"] = {**shape.get("engine", {}), "image": image}
    spec = {key: value for key, value in document["spec"].items() if key not in SHAPING_FIELDS}
    changes = tuple(_changes(_shape_of(document), shape))
    if not changes:
        message = f"{name} has the spec of revision {_shown_name(target, name)} already; there is nothing to change"
        raise CommandError(message, exit_code=EXIT_FAILED)
    return Rollback(
        revision=_shown_name(target, name),
        number=int(target["revision"]),
        document={**document, "spec": {**spec, **shape}},
        changes=changes,
    )


def _current(document: KubeObject, revisions: Sequence[KubeObject]) -> KubeObject | None:
    """The revision that the spec as it stands is; None if it never became one, because it is invalid or nobody has looked at it yet."""
    name = document["metadata"]["name"]
    wanted = (document.get("status") or {}).get("revision")
    named = [item for item in revisions if _shown_name(item, name) == wanted]
    if is_seen(document) and condition(document, "Accepted").get("status") == "True" and named:
        return named[0]
    now = _shape_of(document)
    same = [item for item in revisions if item["data"].get("shape") == now]
    return next((item for item in same if item in named), same[0] if same else None)


def _before(document: KubeObject, revisions: Sequence[KubeObject], current: KubeObject | None) -> KubeObject:
    """The one that a rollout came from, else the newest earlier one that no canary has condemned."""
    name, status = document["metadata"]["name"], document.get("status") or {}
    stable = (status.get("rollout") or {}).get("stable")
    condemned = {entry["name"] for entry in status.get("revisions") or () if entry.get("failed")}
    limit = int(current["revision"]) if current is not None else None
    earlier = [item for item in revisions if limit is None or int(item["revision"]) < limit]
    wanted = [item for item in revisions if _shown_name(item, name) == stable and item is not current]
    found = next((item for item in [*wanted, *earlier] if _shown_name(item, name) not in condemned), None)
    if found is None:
        message = f"{name} has no earlier revision to go back to{_list(revisions, name)}"
        raise CommandError(message, exit_code=EXIT_FAILED)
    return found


def _named(name: str, revisions: Sequence[KubeObject], to: str) -> KubeObject:
    for matches in (lambda item: _shown_name(item, name) == to, lambda item: str(item["revision"]) == to):
        found = next(filter(matches, revisions), None)
        if found is not None:
            return found
    raise CommandError(f"--to {to}: {name} has no such revision{_list(revisions, name)}")


def _list(revisions: Sequence[KubeObject], name: str) -> str:
    shown = [f"{item['revision']} ({_shown_name(item, name)})" for item in revisions]
    return f"; there are: {', '.join(shown)}" if shown else "; none is stored yet"


def _shown_name(revision: Mapping[str, Any], service: str) -> str:
    """The digest that status and labels call the revision by."""
    name: str = revision["metadata"]["name"]
    return name.removeprefix(f"{service}-")


def _shape_of(document: KubeObject) -> dict[str, Any]:
    """The pod-shaping part of the spec without fields at their default, as revisions store it; as written if the spec is invalid."""
    try:
        service = parse_service(document)
    except InvalidResourceError:
        return {key: value for key, value in document["spec"].items() if key in SHAPING_FIELDS}
    shape: dict[str, Any] = service.spec.model_dump(
        mode="json", by_alias=True, include=set(POD_SHAPING), exclude_defaults=True
    )
    return shape


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old, new = dict(_leaves(before)), dict(_leaves(after))
    for path in sorted(old.keys() | new.keys()):
        was, becomes = old.get(path, _ABSENT), new.get(path, _ABSENT)
        if was != becomes:
            yield f"{path}: {_shown(was)} -> {_shown(becomes)}"


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Fields that are no objects; lists count as one value."""
    for key, item in value.items():
        where = f"{path}.{key}".lstrip(".")
        if isinstance(item, Mapping):
            yield from _leaves(item, where)
        else:
            yield where, item


def _shown(value: Any) -> str:
    return "(not set)" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _told(document: Mapping[str, Any], plan: Rollback) -> list[str]:
    metadata = document["metadata"]
    name = metadata["name"]
    lines = [f"{name} goes back to revision {plan.number} ({plan.revision}):", *(f"  {c}" for c in plan.changes)]
    if is_paused(document):
        lines.append(f"It is paused: nothing happens until quire resume {name}.")
    if owner := gitops_owner(document):
        lines.append(f"{owner} undoes this at its next sync, unless it is suspended.")
    elif _LAST_APPLIED in (metadata.get("annotations") or {}):
        lines.append("Change the file that it was applied from, too: the next kubectl apply of it would undo this.")
    lines.append(f"Follow it with: quire status {name} -n {metadata['namespace']}")
    return lines
