"""Warm standby: which pods of a service sleep, which wake, and how many more there are than replicas are wanted.

    wanted 0, standby 2      z z            z: asleep. The Deployment has as many pods as the larger of the two
    wanted 1, standby 2      A z            A: awake
    wanted 3, standby 2      A A A

A pod carries the intent as an annotation, written before it is put to sleep and changed after it is woken, so that whoever leads next
goes on from there. What is asked of a pod that is so already changes nothing. Pure; this module must not know how pods are asked.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from quire_contract import names
from quire_operator import pod_state
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.status import RolloutStatus
from quire_operator.manifests.parts import Manifest
from quire_operator.observation import Observation
from quire_operator.revision_plan import RevisionPlan

READY_WITHIN = timedelta(seconds=30)
"""Of waking: a pod that is not ready by then counts as one that starts."""


@dataclass(frozen=True, kw_only=True)
class StandbyPlan:
    """Names of pods."""

    asleep: frozenset[str] = frozenset()
    """To be put to sleep now; those that sleep are not among them."""
    awake: frozenset[str] = frozenset()
    """To be woken now."""
    resting: frozenset[str] = frozenset()
    """Counted among the replicas though they do not serve: who sleeps, is being woken, or was a moment ago."""


NOTHING = StandbyPlan()


def with_standby(
    service: InferenceService,
    plan: RevisionPlan,
    target: str,
    observation: Observation,
    doomed: Collection[str] = frozenset(),
) -> tuple[RevisionPlan, StandbyPlan]:
    """The plan with the standby's pods added to the revision that stays, and what its pods are to do; the doomed are not counted on."""
    scaling = service.spec.scaling
    home = home_of(plan.rollout, target)
    if scaling is None or scaling.standby is None:
        return plan, StandbyPlan(awake=_leftover(observation))
    if home not in plan.replicas:
        return plan, NOTHING
    extra = max(0, scaling.standby.replicas - service.spec.replicas)
    wanted = plan.replicas[home]
    views = [view for view in observation.pods if view.revision == home and _name(view.pod) not in doomed]
    broken = {_name(view.pod) for view in views if view.is_broken}
    pods = [view.pod for view in views]
    standby = plan_standby(wanted=wanted, extra=extra, pods=pods, broken=broken, now=observation.now)
    return replace(plan, replicas={**plan.replicas, home: wanted + extra}), standby


def home_of(rollout: RolloutStatus | None, target: str) -> str:
    """The revision that keeps the standby: the spec's, or the stable one while a canary is tried or has failed."""
    if rollout is not None and rollout.phase in {"Canary", "Failed"} and rollout.stable:
        return rollout.stable
    return target


def plan_standby(
    *, wanted: int, extra: int, pods: Sequence[Manifest], now: datetime, broken: Collection[str] = frozenset()
) -> StandbyPlan:
    """Of one revision's pods: `wanted` are to be awake, `extra` more are to sleep.

    Sleepers are woken before anything else, at once; who merely comes up does not count as awake. A pod is put to sleep only when no
    pod has to go: a ReplicaSet removes those first that are not ready.
    """
    alive = [pod for pod in pods if pod_state.is_alive(pod) and not pod_state.is_victim(pod)]
    sleepers = sorted((pod for pod in alive if pod_state.is_meant_to_sleep(pod)), key=_wakes_first)
    awake = [pod for pod in alive if _is_awake(pod, broken, now)]
    missing = wanted - len(awake)
    resting = _names(sleepers[: max(0, missing) + extra]) | _names(pod for pod in awake if not pod_state.is_ready(pod))
    if missing > 0:
        woken, sleepers = sleepers[:missing], sleepers[missing:]
        asleep = _names(filter(pod_state.is_ready, sleepers))
        return StandbyPlan(awake=_names(woken), asleep=asleep, resting=resting)
    tired = [pod for pod in sleepers if pod_state.is_ready(pod)]  # its container began anew, or was not told yet
    if len(alive) <= wanted + extra:
        surplus = sorted((pod for pod in awake if pod_state.is_ready(pod)), key=_sleeps_first)
        tired += surplus[: max(0, min(-missing, extra - len(sleepers)))]
    return StandbyPlan(asleep=_names(tired), resting=resting)


def _leftover(observation: Observation) -> frozenset[str]:
    """A service that no longer has a standby wakes who sleeps; its Deployment removes whom it does not need."""
    return _names(
        view.pod for view in observation.pods if pod_state.is_alive(view.pod) and pod_state.is_meant_to_sleep(view.pod)
    )


def _is_awake(pod: Manifest, broken: Collection[str], now: datetime) -> bool:
    """It serves, or was woken a moment ago and is about to."""
    if pod_state.is_meant_to_sleep(pod):
        return False
    woken_at = pod_state.woken_at(pod)
    is_about_to = woken_at is not None and now - woken_at < READY_WITHIN and _name(pod) not in broken
    return pod_state.is_ready(pod) or is_about_to


def _wakes_first(pod: Manifest) -> tuple[bool, str, str]:
    """One that has not been put to sleep yet, then the oldest."""
    return (not pod_state.is_ready(pod), _created(pod), _name(pod))


def _sleeps_first(pod: Manifest) -> tuple[int, str]:
    """The cheapest to lose, as the annotation says that ReplicaSets follow; of equals always the same."""
    annotations: Mapping[str, str] = pod["metadata"].get("annotations") or {}
    try:
        cost = int(annotations.get(names.ANNOTATION_DELETION_COST, "0"))
    except ValueError:
        cost = 0
    return (cost, _name(pod))


def _created(pod: Manifest) -> str:
    return str(pod["metadata"].get("creationTimestamp", ""))


def _names(pods: Iterable[Manifest]) -> frozenset[str]:
    return frozenset(map(_name, pods))


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])
