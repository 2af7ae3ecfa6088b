"""How a simulated service is scaled: as a manifest says, as shipped, or by KEDA's queue length."""

from pathlib import Path

from quire_cli.errors import CommandError
from quire_cli.manifest_files import load_resources
from quire_cli.simulate.scaler import Scaling
from quire_operator.api.inference_service import InferenceService
from quire_operator.autoscale.policy import DEFAULT_DOWN, DEFAULT_UP, Policy, Target
from quire_operator.autoscale.policy_of import policy_of

KEDA_INTERVAL_S = 15.0
"""HPA's period: KEDA's own polling only wakes from zero and sends to it."""
KEDA_COOLDOWN_S = 300.0


def load_scaled(path: Path) -> InferenceService:
    """The one service with `scaling` of a manifest. CommandError if there is none, or several."""
    services = [item.service for item in load_resources([path]).services if item.service.spec.scaling is not None]
    if len(services) != 1:
        raise CommandError(
            f"--manifest: {path}: has {len(services)} InferenceServices with spec.scaling; give a file with exactly one"
        )
    return services[0]


def of_service(service: InferenceService, name: str = "") -> Scaling:
    """By its spec.scaling."""
    scaling = service.spec.scaling
    assert scaling is not None, "load_scaled gives services with scaling"

    def policy(capacity: int | None) -> Policy:
        del capacity  # `decide` learns it from the signal
        return policy_of(service)

    return Scaling(
        name=name or service.metadata.name, policy=policy, interval_s=float(scaling.polling_interval_seconds)
    )


def keda(threshold: int, *, least: int, most: int, like: Policy | None = None) -> Scaling:
    """KEDA on queue length: `threshold` waiting requests a replica, HPA's default behaviour, or the windows and limits of `like`."""
    target = Target(metric="QueueLength", value=float(threshold))
    policy = Policy(
        min_replicas=least,
        max_replicas=most,
        targets=(target,),
        up=DEFAULT_UP if like is None else like.up,
        down=DEFAULT_DOWN if like is None else like.down,
        cooldown_s=KEDA_COOLDOWN_S,
        max_kv_fill=0.0,
    )
    name = f"keda queue {threshold}" + ("" if like is None else ", our behavior")
    return Scaling(name=name, policy=lambda capacity: policy, interval_s=KEDA_INTERVAL_S, on_edge=least == 0)
