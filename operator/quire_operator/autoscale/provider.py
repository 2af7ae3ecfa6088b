"""Who writes a service's number of replicas. Pure; this module must not know how it is found out what the cluster has."""

from dataclasses import dataclass
from typing import Literal

from quire_operator.api.operations import ScalingSpec
from quire_operator.api.validation import Problem

ProviderName = Literal["BuiltIn", "Keda", "Hpa"]


@dataclass(frozen=True, kw_only=True)
class Autoscalers:
    """What there is beside the built-in autoscaler."""

    has_keda: bool = False
    """ScaledObjects are served, and the release serves KEDA's external scaler."""
    keda_trouble: str = ""
    """Why not, and the fix, where more is known than that KEDA is not installed."""
    has_hpa: bool = False
    """HorizontalPodAutoscalers are served in autoscaling/v2."""
    hpa_trouble: str = ""
    """Why not, and the fix, where more is known than that the server is too old."""
    minor: int = 0
    """The server's minor version: 31 of 1.31."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """The only writer of one service's spec.replicas, persons apart."""

    name: ProviderName
    problem: tuple[str, str] | None = None
    """Reason and message, if it cannot do its work here: nobody else does it in its place."""
    has_object: bool = False
    """Its ScaledObject or HPA should exist."""
    note: str = ""
    """Why Auto has not taken KEDA, though it is there."""


def provider_of(
    scaling: ScalingSpec,
    autoscalers: Autoscalers,
    *,
    keda_problems: tuple[Problem, ...] = (),
    hpa_problems: tuple[Problem, ...] = (),
) -> Provider:
    """Auto is KEDA where it is there and can do all that the spec asks for, else the operator; what is named is taken by its word.

    The problems are what the two cannot do of this spec.
    """
    if scaling.provider == "Auto":
        if not autoscalers.has_keda:
            return Provider(name="BuiltIn")
        if keda_problems:
            return Provider(name="BuiltIn", note=f"KEDA is there and cannot do all of this: {_first(keda_problems)}")
        return Provider(name="Keda", has_object=True)
    if scaling.provider == "Keda":
        return _named("Keda", autoscalers.has_keda, ("KEDANotInstalled", _no_keda(autoscalers)), keda_problems)
    if scaling.provider == "Hpa":
        return _named("Hpa", autoscalers.has_hpa, ("HPANotServed", _no_hpa(autoscalers)), hpa_problems)
    return Provider(name="BuiltIn")


def switching(leaving: ProviderName, wanted: Provider) -> Provider:
    """While the object of the one is still there, it stays the writer, and the other waits."""
    what = "ScaledObject" if leaving == "Keda" else "HorizontalPodAutoscaler"
    message = f"replicas pass from {leaving} to {wanted.name}: its {what} goes first"
    return Provider(name=leaving, problem=("SwitchingProvider", message))


def _named(name: ProviderName, is_there: bool, missing: tuple[str, str], problems: tuple[Problem, ...]) -> Provider:
    if not is_there:
        return Provider(name=name, problem=missing)
    if problems:
        return Provider(name=name, problem=("NotSupported", _first(problems)))
    return Provider(name=name, has_object=True)


def _no_keda(autoscalers: Autoscalers) -> str:
    why = autoscalers.keda_trouble or "the cluster serves no keda.sh/v1alpha1; install KEDA"
    return f"spec.scaling.provider is Keda, and {why}, or set provider: Auto"


def _no_hpa(autoscalers: Autoscalers) -> str:
    why = autoscalers.hpa_trouble or (
        f"this server (1.{autoscalers.minor}) serves no autoscaling/v2; use Kubernetes 1.23 or later"
    )
    return f"spec.scaling.provider is Hpa, and {why}, or set provider: BuiltIn"


def _first(problems: tuple[Problem, ...]) -> str:
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0]}{more}"
