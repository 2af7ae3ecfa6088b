"""Revisions: what a service's pods looked like at one time, under a name that says so.

A revision's name is a digest of everything in the spec that shapes a pod, and of the image. Its template is stored when it is
made and never rendered again, so neither a chart nor an operator upgrade restarts a pod. This module must not know status or clusters.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.manifests import worker
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


def revision_name(service: InferenceService, platform: Platform) -> str:
    """The digest. Fields at their default do not enter it, so that a new field with a default changes no digest."""
    shape: dict[str, Any] = service.spec.model_dump(
        mode="json", by_alias=True, include=set(POD_SHAPING), exclude_defaults=True
    )
    shape["servedNames"] = list(service.served_names)
    shape["image"] = worker.worker_image(service, platform)
    text = json.dumps(shape, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def current_revision(service: InferenceService, platform: Platform) -> Revision:
    """The revision of the spec as it stands, with all of the service's replicas."""
    name = revision_name(service, platform)
    template = worker.pod_template(service, names.ROLE_WORKER, name, platform)
    return Revision(name=name, role=names.ROLE_WORKER, template=template, replicas=service.spec.replicas)
