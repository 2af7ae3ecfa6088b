"""Revisions: what a service's pods looked like at one time, under a name that says so.

A revision's name is a digest of everything in the spec that shapes a pod, and of the image. Its template is stored when it is
made, in a ControllerRevision, and never rendered again, so neither a chart nor an operator upgrade restarts a pod. This module
must not know status, pods or what is rolled out when.
"""

import copy
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.manifests import parts, worker
from quire_operator.manifests.parts import Manifest
from quire_operator.platform import Platform

POD_SHAPING = frozenset(
    {
        "model",
        "parallelism",
        "engine",
        "resources",
        "accelerator",
        "adapters",
        "disaggregation",
        "placement",
        "pod_template",
    }
)
"""Fields of the spec that make a new revision; the others (replicas, scaling, rollout) are about how many pods and when."""
DIGEST_LENGTH = 10


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One role's pods of one revision."""

    name: str
    """Ten hexadecimal digits."""
    role: str
    """The pods' role."""
    template: Manifest
    """The stored pod template."""
    replicas: int
    """How many pods it should have."""

    def deployment_name(self, service: InferenceService) -> str:
        """Unique per role and revision; at most 40 + 1 + 7 + 1 + 10 characters."""
        return f"{service.metadata.name}-{self.role}-{self.name}"


@dataclass(frozen=True, kw_only=True)
class StoredRevision:
    """What a ControllerRevision holds; `quire_operator.decision` says how it is read back."""

    name: str
    """The digest."""
    number: int
    """Counts up with each change of the wanted revision; the highest is the newest."""
    shape: Mapping[str, Any]
    """The pod-shaping spec, camelCase, without defaults; empty if it is lost."""
    served_names: tuple[str, ...]
    """The names that its pods serve."""
    image: str
    """The worker's image."""
    template: Manifest
    """The pod template, used as it is."""

    def has_shape_of(self, other: "StoredRevision") -> bool:
        """Whether the two differ in the default image at most: neither an image that the spec names, nor anything else."""
        ours, theirs = (json.dumps([one.shape, one.served_names], sort_keys=True) for one in (self, other))
        return ours == theirs


def revision_name(service: InferenceService, platform: Platform) -> str:
    """The digest. Fields at their default do not enter it, so that a new field with a default changes no digest."""
    return _digest(_shape(service), service.served_names, worker.worker_image(service, platform))


def current_revision(service: InferenceService, platform: Platform) -> Revision:
    """The revision of the spec as it stands, with all of the service's replicas."""
    name = revision_name(service, platform)
    template = worker.pod_template(service, names.ROLE_WORKER, name, platform)
    return Revision(name=name, role=names.ROLE_WORKER, template=template, replicas=service.spec.replicas)


def wanted_revision(service: InferenceService, stored: Iterable[StoredRevision], platform: Platform) -> StoredRevision:
    """The revision that spec and platform ask for: the stored one if there is one, else a new one, rendered here.

    Its number is above all others: going back to an old revision makes that the newest.
    """
    known = {revision.name: revision for revision in stored}
    name = revision_name(service, platform)
    if name in known:
        newest = max(revision.number for revision in known.values())
        found = known[name]
        if not found.shape:  # recovered from its Deployment: the spec that made it is this one
            found = replace(found, shape=_shape(service), served_names=service.served_names)
        return found if found.number == newest else replace(found, number=newest + 1)
    return StoredRevision(
        name=name,
        number=max((revision.number for revision in known.values()), default=0) + 1,
        shape=_shape(service),
        served_names=service.served_names,
        image=worker.worker_image(service, platform),
        template=worker.pod_template(service, names.ROLE_WORKER, name, platform),
    )


def stored_revisions(children: Iterable[Manifest]) -> list[StoredRevision]:
    """What the service's ControllerRevisions hold, newest first.

    A Deployment without its ControllerRevision (somebody deleted it) is a revision still: its live template counts as the stored
    one, so that its pods go on, though there is no spec to go back to.
    """
    children = list(children)
    found = {}
    for child in children:
        if child["kind"] == "ControllerRevision" and (stored := _read(child)) is not None:
            found[stored.name] = stored
    for child in children:
        name = child["metadata"].get("labels", {}).get(names.LABEL_REVISION)
        if child["kind"] == "Deployment" and name and name not in found:
            found[name] = _recovered(name, child["spec"]["template"])
    return sorted(found.values(), key=lambda revision: (-revision.number, revision.name))


def controller_revision(service: InferenceService, revision: StoredRevision) -> Manifest:
    """The object that stores a revision. Its data never changes: the API server refuses that."""
    labels = {**worker.object_labels(service, names.ROLE_WORKER), names.LABEL_REVISION: revision.name}
    meta = parts.metadata(f"{service.metadata.name}-{revision.name}", service.metadata.namespace, labels)
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": meta,
        "data": {
            "shape": revision.shape,
            "servedNames": list(revision.served_names),
            "image": revision.image,
            "template": revision.template,
        },
        "revision": revision.number,
    }
    return parts.owned(manifest, service)


def kept_revisions(stored: Iterable[StoredRevision], needed: Collection[str], limit: int) -> list[StoredRevision]:
    """The needed ones and, beside them, the `limit` newest that can be gone back to; newest first."""
    kept, history = [], 0
    for revision in sorted(stored, key=lambda one: (-one.number, one.name)):
        if revision.name in needed:
            kept.append(revision)
        elif revision.shape and history < limit:
            history += 1
            kept.append(revision)
    return kept


def _shape(service: InferenceService) -> dict[str, Any]:
    return service.spec.model_dump(mode="json", by_alias=True, include=set(POD_SHAPING), exclude_defaults=True)


def _digest(shape: Mapping[str, Any], served_names: Iterable[str], image: str) -> str:
    """The image counts, not whether the spec or the release named it, so that pinning the image restarts nothing."""
    engine = {key: setting for key, setting in shape.get("engine", {}).items() if key != "image"}
    content: dict[str, Any] = {**shape, "engine": engine, "servedNames": list(served_names), "image": image}
    if not engine:
        del content["engine"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def _read(child: Manifest) -> StoredRevision | None:
    """None for an object that is not ours: without our label or data."""
    data, name = child.get("data") or {}, child["metadata"].get("labels", {}).get(names.LABEL_REVISION)
    if not name or "template" not in data:
        return None
    return StoredRevision(
        name=name,
        number=child.get("revision", 0),
        shape=data.get("shape") or {},
        served_names=tuple(data.get("servedNames") or ()),
        image=data.get("image") or _image(data["template"]),
        template=data["template"],
    )


def _recovered(name: str, template: Manifest) -> StoredRevision:
    template = copy.deepcopy(template)
    template["metadata"].pop("creationTimestamp", None)
    served = template["metadata"].get("annotations", {}).get(names.ANNOTATION_SERVED_NAMES, "[]")
    return StoredRevision(
        name=name,
        number=0,
        shape={},
        served_names=tuple(json.loads(served)),
        image=_image(template),
        template=template,
    )


def _image(template: Manifest) -> str:
    images = {container["name"]: container["image"] for container in template["spec"]["containers"]}
    return str(images.get(worker.CONTAINER, ""))
