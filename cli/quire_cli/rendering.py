"""From loaded services to manifests: the one rendering that `quire render` prints and `quire up` carries out.

This module must not know processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from quire_cli.errors import CommandError
from quire_cli.manifest_files import Document, LoadedService
from quire_operator.api.validation import InvalidResourceError
from quire_operator.desired_state import desired_state, name_conflicts, router_state
from quire_operator.manifests.parts import Manifest
from quire_operator.platform import Platform
from quire_operator.revisions import current_revision

CLUSTER_PLATFORM = Platform()
"""A release with the chart's defaults."""
LOCAL_PLATFORM = Platform(model_sources=frozenset({"file", "pvc", "hf"}))
"""What `quire up` has: nothing is downloaded, and hf: models are taken from the machine's Hugging Face cache."""


_WITHOUT_OBJECTS = {
    "ModelRoute": "the operator tells routers of it",
    "Tenant": "the operator tells routers of it, keys as digests",
}


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """All manifests, with the workers' beside the service that they are of."""

    workers: tuple[tuple[LoadedService, tuple[Manifest, ...]], ...]
    router: tuple[Manifest, ...]

    @property
    def manifests(self) -> list[Manifest]:
        """Services first, in the order of the files, then the router."""
        return [*(manifest for _, manifests in self.workers for manifest in manifests), *self.router]


def render(loaded: Sequence[LoadedService], platform: Platform = CLUSTER_PLATFORM) -> Rendered:
    """The desired state. Raises CommandError naming file, line and field of everything that cannot be rendered."""
    errors: list[str] = []
    workers = []
    for item in loaded:
        try:
            manifests = desired_state(item.service, [current_revision(item.service, platform)], platform)
        except InvalidResourceError as error:
            errors += map(item.document.describe, error.problems)
        else:
            workers.append((item, tuple(manifests)))
    services = [item.service for item in loaded]
    documents = {id(item.service): item.document for item in loaded}
    errors += [documents[id(service)].describe(problem) for service, problem in name_conflicts(services)]
    if errors:
        raise CommandError(*errors)
    return Rendered(workers=tuple(workers), router=tuple(router_state(services, platform)))


def without_objects(document: Document) -> str:
    """What becomes of a valid resource that no objects are made of, as one line."""
    return (
        f"{document.place('')}: this {document.kind} is valid and makes no objects: {_WITHOUT_OBJECTS[document.kind]}"
    )


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """An object that occurs twice is written twice."""
        del data
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(manifests: Sequence[Manifest]) -> str:
    """The manifests as one YAML stream."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=140, allow_unicode=True, explicit_start=True)
