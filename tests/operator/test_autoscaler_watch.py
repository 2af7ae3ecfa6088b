"""What KEDA writes into its objects all the time is no news."""

from quire_operator.autoscaler_watch import tell_news
from quire_operator.store import ObjectStore
from quire_operator.trimming import trim_autoscaler


def scaled(version: int, active: str, ready: str = "True") -> dict:
    """A ScaledObject as KEDA leaves it at one of its looks."""
    conditions = [{"type": "Ready", "status": ready}]
    return {
        "kind": "ScaledObject",
        "metadata": {"name": "chat", "namespace": "models", "resourceVersion": str(version), "managedFields": [{}]},
        "spec": {"maxReplicaCount": 4},
        "status": {
            "lastActiveTime": active,
            "health": {"s0-demand": {"numberOfFailures": 0}},
            "conditions": conditions,
        },
    }


def test_a_new_version_alone_is_not_told_and_a_new_condition_is() -> None:
    told: list[object] = []
    store = ObjectStore(lambda item: item["metadata"]["name"], told.append)
    tell = tell_news(store)

    for item in (scaled(1, "09:00"), scaled(2, "09:05"), scaled(3, "09:10", "False"), scaled(4, "09:15", "False")):
        tell("MODIFIED", trim_autoscaler(item))

    assert told == ["chat", "chat"]
    assert store.get("ScaledObject", "models", "chat")["status"] == {
        "conditions": [{"type": "Ready", "status": "False"}]
    }

    tell("DELETED", trim_autoscaler(scaled(5, "09:20", "False")))

    assert store.get("ScaledObject", "models", "chat") is None
