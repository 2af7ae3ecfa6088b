"""What a trigger's metadata says: flat strings, as KEDA passes them on from a ScaledObject.

    service                      the InferenceService, in the ScaledObject's namespace
    namespace                    that namespace; may be left out, and can be no other one
    target                       requests held, queued and running, per replica
    queueLengthTarget            requests held and queued, per replica
    queueWaitTargetMs            95th percentiles of the last minute in milliseconds
    timeToFirstTokenTargetMs
    interTokenLatencyTargetMs
    kvUseTargetPercent           of the KV blocks in use
    activation                   demand above which the service is active; 0
    forceActivation              "true": it is active whatever the demand is

The first two targets are totals, for a trigger with metricType AverageValue (KEDA's default); the other four are for one with metricType
Value. A trigger has one or the other. Pure; this module must not know gRPC or demand.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from quire_operator.autoscale.policy import TOTALS, Metric

KEY_SERVICE = "service"
KEY_NAMESPACE = "namespace"
KEY_ADDRESS = "scalerAddress"
KEY_TLS = "enableTLS"
KEY_ACTIVATION = "activation"
KEY_FORCE = "forceActivation"
KEY_OF_TARGET: Mapping[Metric, str] = {
    "Demand": "target",
    "QueueLength": "queueLengthTarget",
    "QueueWait": "queueWaitTargetMs",
    "TimeToFirstToken": "timeToFirstTokenTargetMs",
    "InterTokenLatency": "interTokenLatencyTargetMs",
    "KvUse": "kvUseTargetPercent",
}
METRIC_NAMES: Mapping[Metric, str] = {
    "Demand": "demand",
    "QueueLength": "queue_length",
    "QueueWait": "queue_wait_ms",
    "TimeToFirstToken": "time_to_first_token_ms",
    "InterTokenLatency": "inter_token_latency_ms",
    "KvUse": "kv_use_percent",
}
"""What KEDA calls them, in specs, values and in the HPA that it makes (with a prefix of its own)."""
UNITS: Mapping[Metric, float] = {
    "Demand": 1.0,
    "QueueLength": 1.0,
    "QueueWait": 1000.0,
    "TimeToFirstToken": 1000.0,
    "InterTokenLatency": 1000.0,
    "KvUse": 100.0,
}
"""A reading times this is a metric's value: KEDA keeps thousandths at most, so that seconds and shares would be cut."""
_KEDAS_OWN = frozenset({KEY_ADDRESS, KEY_TLS, "unsafeSsl", "caCert", "tlsCertFile", "tlsClientCert", "tlsClientKey"})
_KNOWN = frozenset({KEY_SERVICE, KEY_NAMESPACE, KEY_ACTIVATION, KEY_FORCE, *KEY_OF_TARGET.values()}) | _KEDAS_OWN
_MAX_TARGET = 1e9
_MAX_NAME = 253


class MetadataError(ValueError):
    """The message names the key and the fix."""


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """One trigger of one ScaledObject."""

    service: str
    """As "namespace/name"."""
    targets: Mapping[Metric, float]
    """At least one, in the metrics' own units."""
    activation: float = 0.0
    is_forced: bool = False

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """By the name that KEDA knows."""
        return {METRIC_NAMES[metric]: metric for metric in self.targets}


def parse_trigger(namespace: str, metadata: Mapping[str, str]) -> Trigger:
    """The trigger of a ScaledObject in `namespace`. MetadataError."""
    unknown = sorted(set(metadata) - _KNOWN)
    if unknown:
        known = ", ".join(sorted(_KNOWN - _KEDAS_OWN))
        raise MetadataError(f"{unknown[0][:100]}: unknown key; known are {known}")
    if not metadata.get(KEY_SERVICE):
        raise MetadataError(f"{KEY_SERVICE}: is missing; write the InferenceService's name")
    if "/" in metadata[KEY_SERVICE]:
        raise MetadataError(
            f"{KEY_SERVICE}: is a name without a namespace, and {metadata[KEY_SERVICE][:200]!r} is none"
        )
    if len(metadata[KEY_SERVICE]) > _MAX_NAME or len(namespace) > _MAX_NAME:
        raise MetadataError(f"{KEY_SERVICE}: no name is longer than {_MAX_NAME}; write the InferenceService's name")
    if not namespace:
        raise MetadataError(f"{KEY_NAMESPACE}: KEDA has not told the ScaledObject's namespace")
    if metadata.get(KEY_NAMESPACE, namespace) != namespace:
        raise MetadataError(f"{KEY_NAMESPACE}: must be the ScaledObject's own, {namespace!r}; nobody reads another's")
    return Trigger(
        service=f"{namespace}/{metadata[KEY_SERVICE]}",
        targets=_targets(metadata),
        activation=_number(metadata, KEY_ACTIVATION, least=0.0) if KEY_ACTIVATION in metadata else 0.0,
        is_forced=_flag(metadata, KEY_FORCE),
    )


def _targets(metadata: Mapping[str, str]) -> dict[Metric, float]:
    targets = {metric: _number(metadata, key, least=0.001) for metric, key in KEY_OF_TARGET.items() if key in metadata}
    if not targets:
        keys = ", ".join(KEY_OF_TARGET.values())
        raise MetadataError(f"{KEY_OF_TARGET['Demand']}: is missing; write it, or another target ({keys})")
    values = [metric for metric in targets if metric not in TOTALS]
    if values and len(values) < len(targets):
        key = KEY_OF_TARGET[values[0]]
        raise MetadataError(f"{key}: belongs into a trigger of its own with metricType Value; others here are totals")
    return targets


def _number(metadata: Mapping[str, str], key: str, *, least: float) -> float:
    text = metadata[key]
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number <= _MAX_TARGET:
        raise MetadataError(f"{key}: must be a number from {least:g} to {_MAX_TARGET:g} and is {text[:100]!r}")
    return number


def _flag(metadata: Mapping[str, str], key: str) -> bool:
    text = metadata.get(key, "false").lower()
    if text not in ("true", "false"):
        raise MetadataError(f"{key}: must be true or false and is {text[:100]!r}")
    return text == "true"
