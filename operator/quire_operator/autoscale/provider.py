"""Who writes a service's number of replicas. Pure; this module must not know how it is found out what the cluster has."""

from dataclasses import dataclass
from typing import Literal

from quire_operator.api.operations import ScalingSpec

ProviderName = Literal["BuiltIn", "Keda", "Hpa"]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """The only writer of one service's spec.replicas, persons apart."""

    name: ProviderName
    problem: tuple[str, str] | None = None
    """Reason and message, if it cannot do its work here: nobody else does it in its place."""


def provider_of(scaling: ScalingSpec, *, has_keda: bool) -> Provider:
    """Auto is KEDA where its CRDs are served, else the operator; what is named is taken by its word."""
    if scaling.provider == "Auto":
        return Provider(name="Keda" if has_keda else "BuiltIn")
    if scaling.provider == "Keda" and not has_keda:
        message = "spec.scaling.provider is Keda, and the cluster has no ScaledObject; install KEDA, or write BuiltIn"
        return Provider(name="Keda", problem=("KedaMissing", message))
    return Provider(name=scaling.provider)
