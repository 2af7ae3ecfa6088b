"""Which nodes are about to be lost, by the marks that clouds, autoscalers and their handlers put on them.

A cordon alone is none: it keeps new pods away and promises that those which run stay; who drains a node after it evicts its pods, and
these drain as they are told to end. Nor is a candidate for removal, which an autoscaler may think better of. Pure but for the book.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from quire_operator.store import KubeObject

TAINTS = frozenset(
    {
        "node.kubernetes.io/out-of-service",
        "node.cloudprovider.kubernetes.io/shutdown",
        "cloud.google.com/impending-node-termination",
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "remediator.aks.microsoft.com/unschedulable",
        "remediator.kubernetes.azure.com/unschedulable",
    }
)
TAINT_PREFIXES = ("aws-node-termination-handler/",)
"""Of spot interruptions, rebalance recommendations, scheduled maintenance and the ends of scaling groups' instances."""
_KEPT_META = ("name", "uid", "resourceVersion", "deletionTimestamp")


def doom_of(node: Mapping[str, Any]) -> str | None:
    """Why the node will be lost soon, in words; None: it will not, as far as anybody has said."""
    name = node["metadata"]["name"]
    if node["metadata"].get("deletionTimestamp"):
        return f"node {name} is being deleted"
    for taint in (node.get("spec") or {}).get("taints") or ():
        key = str(taint.get("key", ""))
        if key in TAINTS or key.startswith(TAINT_PREFIXES):
            return f"node {name} has taint {key}"
    return None


def is_disrupted(pod: Mapping[str, Any]) -> str | None:
    """Why the pod itself is about to be taken away; None: it is not. Kubernetes says so from 1.26 on."""
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return f"Kubernetes takes it away: {condition.get('reason') or 'DisruptionTarget'}"
    return None


def trim_node(item: KubeObject) -> KubeObject:
    """A node's name and taints: its status changes all the time, and nobody here reads it."""
    meta = {key: item["metadata"][key] for key in _KEPT_META if key in item["metadata"]}
    taints = [{"key": taint.get("key")} for taint in (item.get("spec") or {}).get("taints") or ()]
    return {"metadata": meta, "spec": {"taints": taints}}


class NodeBook:
    """Nodes that are about to be lost; `on_change` is told the name of one that is, or is no longer."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._doomed: dict[str, str] = {}

    def doom(self, node: str | None) -> str | None:
        """Why the node will be lost; None: it will not, or nodes are not watched."""
        return None if node is None else self._doomed.get(node)

    def replace(self, nodes: Iterable[KubeObject]) -> None:
        """These are all nodes."""
        doomed = {node["metadata"]["name"]: told for node in nodes if (told := doom_of(node))}
        for name in self._doomed.keys() | doomed.keys():
            self._set(name, doomed.get(name))

    def handle(self, event: str, node: KubeObject) -> None:
        """A watch event: ADDED, MODIFIED or DELETED."""
        self._set(node["metadata"]["name"], None if event == "DELETED" else doom_of(node))

    def _set(self, name: str, told: str | None) -> None:
        if self._doomed.get(name) == told:
            return
        if told is None:
            del self._doomed[name]
        else:
            self._doomed[name] = told
        self._on_change(name)
