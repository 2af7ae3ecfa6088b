"""What the operator counts for its metrics."""

from typing import Any

from quire_operator.cache import ClusterCache


def service(name: str, status: str, reason: str) -> dict[str, Any]:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": "1"},
        "spec": {"model": {"uri": "file:///m"}},
        "status": {"conditions": [{"type": "Ready", "status": status, "reason": reason}]},
    }


def test_a_service_that_sleeps_counts_neither_as_ready_nor_as_in_trouble() -> None:
    cache = ClusterCache(lambda key: None)

    for document in (
        service("up", "True", "Serving"),
        service("down", "False", "Unschedulable"),
        service("asleep", "False", "ScaledToZero"),
    ):
        cache.handle("ADDED", document)

    assert cache.num_services(is_ready=True) == 1
    assert cache.num_services(is_ready=False) == 1
