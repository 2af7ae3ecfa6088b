"""Nodes that are about to be lost are known by what clouds and their handlers put on them; a cordon is none of these."""

import pytest

from quire_operator.node_doom import NodeBook, doom_of, is_disrupted, trim_node


def node(*taints: str, name: str = "n1", **spec: object) -> dict:
    return {
        "metadata": {"name": name, "resourceVersion": "1", "labels": {"a": "b"}},
        "spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints], **spec},
        "status": {"images": ["x"]},
    }


@pytest.mark.parametrize(
    "key",
    [
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/rebalance-recommendation",
        "cloud.google.com/impending-node-termination",
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "node.kubernetes.io/out-of-service",
        "remediator.kubernetes.azure.com/unschedulable",
    ],
)
def test_termination_notices_are_doom(key) -> None:
    assert doom_of(node("other", key)) == f"node n1 has taint {key}"


@pytest.mark.parametrize(
    "harmless",
    [
        node(),
        node("nvidia.com/gpu"),
        node("DeletionCandidateOfClusterAutoscaler"),
        node("node.kubernetes.io/unschedulable", unschedulable=True),
        node("kubernetes.azure.com/scalesetpriority"),
    ],
    ids=["plain", "gpu", "candidate", "cordon", "spot"],
)
def test_what_may_pass_is_none(harmless) -> None:
    assert doom_of(harmless) is None


def test_trimmed_node_is_doomed_as_the_whole_one_is() -> None:
    whole = node("karpenter.sh/disrupted")

    trimmed = trim_node(whole)

    assert doom_of(trimmed) == doom_of(whole)
    assert "status" not in trimmed


def test_only_changes_of_doom_are_told() -> None:
    told: list[str] = []
    book = NodeBook(told.append)

    book.replace([node(), node("karpenter.sh/disrupted", name="n2")])
    book.handle("MODIFIED", node("karpenter.sh/disrupted", name="n2"))
    book.handle("MODIFIED", node("karpenter.sh/disrupted"))
    book.handle("DELETED", node("karpenter.sh/disrupted"))

    assert told == ["n2", "n1", "n1"]
    assert (book.doom("n1"), book.doom("n2"), book.doom(None)) == (
        None,
        "node n2 has taint karpenter.sh/disrupted",
        None,
    )


def test_pod_that_kubernetes_is_about_to_take_away_says_so() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}

    assert is_disrupted({"status": {"conditions": [condition]}}) == "Kubernetes takes it away: DeletionByTaintManager"
    assert is_disrupted({"status": {"conditions": [{**condition, "status": "False"}]}}) is None
    assert is_disrupted({}) is None
