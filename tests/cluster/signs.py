"""What pods show of a trouble before anybody interprets it, and small InferenceServices to get into one.

Must not know what the operator says about it.
"""

from collections.abc import Callable
from typing import Any

Manifest = dict[str, Any]
Sign = Callable[[Manifest], bool]
IN_THE_IMAGE = "file://./models/quire-demo"
"""The demo model, which needs no fetching."""


def small_service(name: str, uri: str = IN_THE_IMAGE, **spec: dict[str, Any]) -> Manifest:
    """An InferenceService of one small worker; fields such as `engine` of `spec` are merged into its own."""
    own: Manifest = {
        "model": {"uri": uri},
        "replicas": 1,
        "engine": {"kvCacheMemory": "64Mi", "maxNumSeqs": 16, "drainTimeoutSeconds": 2},
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
    }
    for key, fields in spec.items():
        own[key] = {**own.get(key, {}), **fields}
    return {"apiVersion": "quire.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name}, "spec": own}


def token_secret(name: str, token: str) -> Manifest:
    """Credentials of a model source."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"TOKEN": token}}


def waits_for(*reasons: str) -> Sign:
    """One of the pod's containers waits for such a reason."""
    return lambda pod: any(_state(found, "state", "waiting").get("reason") in reasons for found in _containers(pod))


def ended_with(reason: str, container: str) -> Sign:
    """The pod's container ended so, now or the last time."""

    def shows(pod: Manifest) -> bool:
        found = [entry for entry in _containers(pod) if entry["name"] == container]
        ends = [_state(entry, key, "terminated") for entry in found for key in ("state", "lastState")]
        return any(end.get("reason") == reason for end in ends)

    return shows


def runs(container: str) -> Sign:
    """The pod's container runs."""
    return lambda pod: any(
        found["name"] == container and _state(found, "state", "running") for found in _containers(pod)
    )


def is_unschedulable(pod: Manifest) -> bool:
    """The scheduler found no node for the pod."""
    found = [entry for entry in pod["status"].get("conditions", ()) if entry["type"] == "PodScheduled"]
    return any(entry.get("reason") == "Unschedulable" for entry in found)


def creates_no_pods(replica_set: Manifest) -> bool:
    """The ReplicaSet's pods are refused."""
    conditions = replica_set.get("status", {}).get("conditions", ())
    return any(entry["type"] == "ReplicaFailure" and entry["status"] == "True" for entry in conditions)


def _containers(pod: Manifest) -> list[Manifest]:
    status = pod["status"]
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def _state(container: Manifest, key: str, kind: str) -> Manifest:
    return (container.get(key) or {}).get(kind) or {}
