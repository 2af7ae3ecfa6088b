"""Where pods may run: spec.placement and spec.accelerator as a pod's scheduling fields.

This module must not know containers.
"""

from collections.abc import Mapping

from quire_operator.api.validation import NotYetSupportedError, Problem
from quire_operator.api.workload import AcceleratorSpec, PlacementSpec, Toleration
from quire_operator.manifests.parts import Manifest
from quire_operator.platform import SpotPool

HOSTNAME_KEY = "kubernetes.io/hostname"
GPU_PRODUCT_KEY = "nvidia.com/gpu.product"
GPU_TAINT_KEY = "nvidia.com/gpu"


def placement_fields(
    placement: PlacementSpec, accelerator: AcceleratorSpec | None, selector: Mapping[str, str], spot: SpotPool | None
) -> Manifest:
    """nodeSelector, affinity, tolerations and topologySpreadConstraints; empty ones are left out."""
    node_selector = dict(placement.node_selector)
    tolerations = [toleration.model_dump(by_alias=True, exclude_none=True) for toleration in placement.tolerations]
    if accelerator:
        tolerations.append(_dump(Toleration(key=GPU_TAINT_KEY, operator="Exists", effect="NoSchedule")))
        if accelerator.product:
            node_selector[GPU_PRODUCT_KEY] = accelerator.product
    affinity: Manifest = {}
    if placement.spot != "Forbid":
        if spot is None:
            raise NotYetSupportedError(spot_problems(placement, spot))
        pool = spot
        tolerations.append(_dump(Toleration(key=pool.label_key, operator="Exists", effect="NoSchedule")))
        if placement.spot == "Require":
            node_selector[pool.label_key] = pool.label_value
        else:
            affinity = _prefer(pool)
    fields = {
        "nodeSelector": dict(sorted(node_selector.items())),
        "affinity": affinity,
        "tolerations": tolerations,
        "topologySpreadConstraints": _spread(placement, selector),
    }
    return {key: content for key, content in fields.items() if content}


def spot_problems(placement: PlacementSpec, spot: SpotPool | None) -> list[Problem]:
    """That the service asks for nodes of which the platform has none."""
    if placement.spot == "Forbid" or spot is not None:
        return []
    message = "this platform names no spot nodes; set the release's spot label, or write Forbid"
    return [Problem(path="spec.placement.spot", message=message)]


def _spread(placement: PlacementSpec, selector: Mapping[str, str]) -> list[Manifest]:
    """What the service asks for; else over nodes, without ever keeping a pod from running."""
    asked = [(item.topology_key, item.max_skew, item.when_unsatisfiable) for item in placement.topology_spread]
    return [
        {
            "topologyKey": key,
            "maxSkew": skew,
            "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": dict(selector)},
        }
        for key, skew, when in asked or [(HOSTNAME_KEY, 1, "ScheduleAnyway")]
    ]


def _prefer(pool: SpotPool) -> Manifest:
    expression = {"key": pool.label_key, "operator": "In", "values": [pool.label_value]}
    term = {"weight": 100, "preference": {"matchExpressions": [expression]}}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}


def _dump(toleration: Toleration) -> Manifest:
    dumped: Manifest = toleration.model_dump(by_alias=True, exclude_none=True)
    return dumped
