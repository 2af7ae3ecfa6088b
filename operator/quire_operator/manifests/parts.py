"""Pieces that every Quire pod has: metadata, security contexts, probes, volumes, environment.

All pods pass the restricted Pod Security profile. This module must not know workers or routers.
"""

from collections.abc import Mapping
from typing import Any

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.resource import API_VERSION

Manifest = dict[str, Any]

MANAGER = "quire-operator"
ANNOTATION_MODEL_URI = "quire.dev/model-uri"
ANNOTATION_MODEL_REVISION = "quire.dev/model-revision"
ENV_MODEL_DIR = "MODEL_DIR"

TRUST_PATH = "/etc/quire/trust"
TMP_PATH = "/tmp"  # noqa: S108  (a mount point inside the container)
CACHE_PATH = "/var/cache/quire"
VOLUME_TRUST = "trust"
VOLUME_TMP = "tmp"
VOLUME_CACHE = "cache"
TMP_SIZE = "2Gi"
CACHE_SIZE = "4Gi"
ROLE_OPERATOR = "operator"
NAMESPACE_KEY = "kubernetes.io/metadata.name"
OWNER_AND_GROUP_READ = 0o440
_OWNERLESS = frozenset({"PersistentVolumeClaim"})


def owned(manifest: Manifest, service: InferenceService) -> Manifest:
    """The object as a child of `service`, to be collected with it; as it is where it outlives services, or before there is a uid.

    blockOwnerDeletion stays false: to set it takes rights to the owner's finalizers, and nobody waits for the children.
    """
    if manifest["kind"] in _OWNERLESS or service.metadata.uid is None:
        return manifest
    owner = {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "name": service.metadata.name,
        "uid": service.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}


def metadata(
    name: str, namespace: str | None, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None
) -> Manifest:
    """An object's metadata; absent parts are left out."""
    entry: Manifest = {"name": name}
    if namespace:
        entry["namespace"] = namespace
    entry["labels"] = dict(sorted(labels.items()))
    if annotations:
        entry["annotations"] = dict(sorted(annotations.items()))
    return entry


def common_labels(instance: str, component: str) -> dict[str, str]:
    """Labels that Kubernetes' tools look for."""
    return {
        names.LABEL_NAME: "quire",
        names.LABEL_INSTANCE: instance,
        names.LABEL_COMPONENT: component,
        names.LABEL_PART_OF: "quire",
        names.LABEL_MANAGED_BY: MANAGER,
    }


def pod_security(user: int) -> Manifest:
    """The pod's security context, restricted profile; files of volumes belong to the pod's group."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Manifest:
    """A container's security context, restricted profile and a root file system that nothing writes to."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def http_probe(
    path: str, *, period_s: int, timeout_s: int, failures: int, port: str = names.PORT_NAME_HTTP
) -> Manifest:
    """A probe of the container port of this name."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def value(name: str, text: str) -> Manifest:
    """An environment variable; `text` may hold $(OTHER) of a variable listed before it."""
    return {"name": name, "value": text}


def field(name: str, path: str) -> Manifest:
    """An environment variable from the pod's own fields."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def literal(text: str) -> str:
    """`text` so that the kubelet's $(VAR) expansion gives it back unchanged."""
    return text.replace("$", "$$")


def scratch_volumes() -> list[Manifest]:
    """Writable folders of a pod: temporary files, and caches that may be lost. Bounded, or one pod could fill its node's disk."""
    return [
        {"name": VOLUME_TMP, "emptyDir": {"sizeLimit": TMP_SIZE}},
        {"name": VOLUME_CACHE, "emptyDir": {"sizeLimit": CACHE_SIZE}},
    ]


def scratch_mounts() -> list[Manifest]:
    """Where the writable folders are."""
    return [{"name": VOLUME_TMP, "mountPath": TMP_PATH}, {"name": VOLUME_CACHE, "mountPath": CACHE_PATH}]


def secret_value(name: str, secret: str) -> Manifest:
    """An environment variable from the Secret's key of the same name, absent where the Secret has no such key."""
    reference = {"name": secret, "key": name, "optional": True}
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def scratch_env() -> list[Manifest]:
    """Tells libraries about the writable folders."""
    return [value("TMPDIR", TMP_PATH), value("XDG_CACHE_HOME", CACHE_PATH)]


def trust_volume(secret: str) -> Manifest:
    """The Secret by which processes of a release know each other."""
    return {"name": VOLUME_TRUST, "secret": {"secretName": secret, "defaultMode": OWNER_AND_GROUP_READ}}


def trust_mount() -> Manifest:
    """Where the Secret's files are."""
    return {"name": VOLUME_TRUST, "mountPath": TRUST_PATH, "readOnly": True}


def service_account(name: str, namespace: str | None, labels: Mapping[str, str]) -> Manifest:
    """An identity without an API token."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(name, namespace, labels),
        "automountServiceAccountToken": False,
    }


def disruption_budget(api: str, meta: Manifest, selector: Mapping[str, str]) -> Manifest:
    """At most one serving pod is evicted at a time; one that does not serve, such as one that loads, never holds up a node's drain."""
    spec: Manifest = {"maxUnavailable": 1, "selector": {"matchLabels": dict(selector)}}
    if api == "policy/v1":
        spec["unhealthyPodEvictionPolicy"] = "AlwaysAllow"
    return {"apiVersion": api, "kind": "PodDisruptionBudget", "metadata": meta, "spec": spec}
