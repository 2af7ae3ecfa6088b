"""What HPA v2 is told: the behaviour that KEDA passes on to it, and an HPA of our own.

Both are made from the same Policy that the built-in autoscaler decides by. Pure; this module must not know KEDA, demand or the server.
"""

from collections.abc import Mapping
from typing import Any

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.resource import API_VERSION
from quire_operator.api.validation import Problem
from quire_operator.autoscale.policy import Direction, Policy
from quire_operator.manifests import parts, worker
from quire_operator.manifests.parts import Manifest

KIND = "HorizontalPodAutoscaler"
EXTERNAL_METRIC = names.QUIRE_OPERATOR_DEMAND
"""The external metric, which a metrics adapter must serve; docs/autoscaling-keda.md says how."""
LABEL_METRIC_NAMESPACE = "service_namespace"
LABEL_METRIC_NAME = "service_name"
TOLERANCE = 0.1
"""Of a server that is told no other."""
TOLERANCE_SINCE = 35
"""The minor version from which a server honours `tolerance` (KEP-4951, beta)."""
TO_ZERO_SINCE = 37
"""The minor version from which an HPA may have minReplicas 0 (feature HPAScaleToZero, on by default)."""
_BUILT_IN = "or set spec.scaling.provider: BuiltIn"


def behavior(policy: Policy, minor: int) -> Manifest:
    """HorizontalPodAutoscalerBehavior, whole: what is left open would be another default elsewhere."""
    return {"scaleUp": _rules(policy.up, minor), "scaleDown": _rules(policy.down, minor)}


def behavior_problems(policy: Policy, minor: int) -> list[Problem]:
    """What no HPA of this server can do."""
    problems = []
    for name, direction in (("scaleUp", policy.up), ("scaleDown", policy.down)):
        if minor < TOLERANCE_SINCE and direction.tolerance != TOLERANCE:
            message = (
                f"an HPA's tolerance can be set from Kubernetes 1.{TOLERANCE_SINCE} on, and this is 1.{minor}; "
                f"write 10, {_BUILT_IN}"
            )
            problems.append(Problem(path=f"spec.scaling.behavior.{name}.tolerancePercent", message=message))
    if policy.panic is not None:
        problems.append(
            Problem(path="spec.scaling.panic", message=f"HPA and KEDA know no panic; remove it, {_BUILT_IN}")
        )
    return problems


def scale_target(service: InferenceService) -> Manifest:
    """Whose /scale is written."""
    return {"apiVersion": API_VERSION, "kind": "InferenceService", "name": service.metadata.name}


def autoscaler(service: InferenceService, policy: Policy, minor: int) -> Manifest:
    """The HPA on the service's /scale. Only for a policy without `autoscaler_problems`."""
    demand = next(target for target in policy.targets if target.metric == "Demand")
    selector = {LABEL_METRIC_NAMESPACE: service.metadata.namespace, LABEL_METRIC_NAME: service.metadata.name}
    external = {
        "metric": {"name": EXTERNAL_METRIC, "selector": {"matchLabels": selector}},
        "target": {"type": "AverageValue", "averageValue": _quantity(demand.value)},
    }
    spec = {
        "scaleTargetRef": scale_target(service),
        "minReplicas": policy.min_replicas if minor >= TO_ZERO_SINCE else max(1, policy.min_replicas),
        "maxReplicas": policy.max_replicas,
        "metrics": [{"type": "External", "external": external}],
        "behavior": behavior(policy, minor),
    }
    labels = worker.object_labels(service, names.ROLE_WORKER)
    meta = parts.metadata(service.metadata.name, service.metadata.namespace, labels)
    return {"apiVersion": "autoscaling/v2", "kind": KIND, "metadata": meta, "spec": spec}


def autoscaler_problems(policy: Policy, minor: int) -> list[Problem]:
    """What an HPA alone cannot do."""
    problems = behavior_problems(policy, minor)
    others = sorted(target.metric for target in policy.targets if target.metric != "Demand")
    if others:
        message = f"provider Hpa follows Demand only; remove {', '.join(others)}, set provider: Keda, {_BUILT_IN}"
        problems.append(Problem(path="spec.scaling.targets", message=message))
    if policy.schedules:
        message = f"an HPA knows no hours; remove them, set provider: Keda, {_BUILT_IN}"
        problems.append(Problem(path="spec.scaling.schedules", message=message))
    if policy.fallback is not None:
        message = f"an HPA keeps its replicas while its metric is missing; remove the fallback, set provider: Keda, {_BUILT_IN}"
        problems.append(Problem(path="spec.scaling.fallback", message=message))
    return problems


def told_target(live: Mapping[str, Any]) -> float | None:
    """Demand per replica of an HPA as it is on the server: what an engine said of its capacity outlives its replicas there."""
    for metric in (live.get("spec") or {}).get("metrics") or ():
        text = str(((metric.get("external") or {}).get("target") or {}).get("averageValue", ""))
        if text.isdigit():
            return float(text)
    return None


def zero_note(policy: Policy, minor: int) -> str:
    """Why the service does not sleep though it may; empty: it does, or need not."""
    if policy.min_replicas > 0 or minor >= TO_ZERO_SINCE:
        return ""
    return (
        f"spec.scaling.minReplicas is 0 and one replica stays: an HPA goes to zero from Kubernetes 1.{TO_ZERO_SINCE} on "
        f"(feature HPAScaleToZero), and this is 1.{minor}; set provider: Keda or BuiltIn"
    )


def _rules(direction: Direction, minor: int) -> Manifest:
    rules: Manifest = {
        "stabilizationWindowSeconds": int(direction.window_s),
        "selectPolicy": direction.select,
        "policies": [
            {"type": limit.kind, "value": limit.value, "periodSeconds": limit.period_s} for limit in direction.limits
        ],
    }
    if minor >= TOLERANCE_SINCE and direction.tolerance != TOLERANCE:
        rules["tolerance"] = _quantity(direction.tolerance)
    return rules


def _quantity(value: float) -> str:
    """As a resource.Quantity in its canonical form, to thousandths: 8, 1500m."""
    thousandths = round(value * 1000)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"
