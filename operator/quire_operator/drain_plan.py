"""Which replicas go when there are too many, and when: chosen by their load, drained first, and taken back if they are needed again.

    surplus    the least loaded replicas drain; the Deployment shrinks by those that are empty, or late
    doomed     replicas whose node is about to be lost drain at once; others are asked for beside them, until these serve

A ReplicaSet takes away pods that are not ready before others, and of those the ones with the least deletion cost: a drained worker
is not ready, so that those that were chosen go on servers that know no deletion cost, too. The choice is written on the pods, so whoever
decides next, after a crash, goes on with it. Pure; this module must not know how a worker is told to drain.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from quire_contract import names
from quire_operator import pod_state
from quire_operator.autoscale.signal import WorkerLoad
from quire_operator.manifests.parts import Manifest
from quire_operator.timestamps import parse_time

COST_DRAINING = -1000
COST_EMPTY = -2000
SCALE_DOWN = "ScaleDown"
_MARGIN = timedelta(seconds=15)
"""A worker moves on what it has left when its own drain timeout is over; after so long more it is not waited for."""


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """One replica that shall drain."""

    why: str
    """ScaleDown, or what is to happen to its node."""
    cost: int
    """Its deletion cost."""


@dataclass(frozen=True, kw_only=True)
class DrainPlan:
    """What should be so of one service's replicas. One that drains and is not named here is taken back."""

    replicas: int = 0
    """What the Deployment should be told."""
    leaving: Mapping[str, Leaving] = field(default_factory=dict)
    """By the name of the pod."""
    look_again: datetime | None = None
    """When one that drains is no longer waited for."""


@dataclass(frozen=True, kw_only=True)
class DrainInput:
    """What a plan depends on."""

    pods: Sequence[Manifest]
    """Of one revision."""
    told: int
    """What its Deployment was last told."""
    wanted: int
    """Replicas that it should have."""
    loads: Mapping[str, WorkerLoad]
    """By the name of the pod; one that is not here has no load that is known."""
    empty: Collection[str]
    """Pods that have told that they drain and have nothing left."""
    doomed: Mapping[str, str]
    """Pods whose node is about to be lost, and why."""
    drain_timeout_s: float
    now: datetime
    resting: Collection[str] = ()
    """Pods that count among `wanted` though they do not serve: a warm standby's."""


def plan_drains(given: DrainInput) -> DrainPlan:
    """Who drains, and how many the Deployment may have. Nothing grows but for the doomed, nothing shrinks before it is empty."""
    alive = [pod for pod in given.pods if pod_state.is_alive(pod)]
    doomed = [pod for pod in alive if _name(pod) in given.doomed]
    healthy = [pod for pod in alive if _name(pod) not in given.doomed]
    resting = [pod for pod in healthy if _name(pod) in given.resting]
    serving = [pod for pod in healthy if _serves(pod) and pod not in resting]
    slots = max(len(healthy), given.told - len(doomed))
    idle = slots - len(serving) - len(resting)
    surplus = max(0, min(len(serving), slots - given.wanted - idle))
    chosen = sorted(serving, key=lambda pod: _rank(pod, given))[:surplus]
    staying = [pod for pod in chosen if not _may_go(pod, given)]
    fit = [pod for pod in healthy if pod in resting or (pod_state.is_ready(pod) and pod not in chosen)]
    is_replaced = len(fit) >= given.wanted
    kept = [pod for pod in doomed if not (is_replaced and (_may_go(pod, given) or not _is_up(pod)))]
    leaving = {_name(pod): Leaving(why=SCALE_DOWN, cost=_cost(pod, given)) for pod in chosen}
    leaving |= {
        _name(pod): Leaving(why=given.doomed[_name(pod)], cost=_cost(pod, given)) for pod in doomed if _is_up(pod)
    }
    waiting = [*staying, *(pod for pod in doomed if _is_up(pod))]
    deadlines = [late for pod in waiting if (late := _deadline(pod, given)) and late > given.now]
    return DrainPlan(
        replicas=given.wanted + len(staying) + len(kept), leaving=leaving, look_again=min(deadlines, default=None)
    )


def doomed_only(pods: Sequence[Manifest], doomed: Mapping[str, str], empty: Collection[str]) -> dict[str, Leaving]:
    """Who drains while revisions are exchanged: only those that must."""
    return {
        _name(pod): Leaving(why=doomed[_name(pod)], cost=COST_EMPTY if _name(pod) in empty else COST_DRAINING)
        for pod in pods
        if _name(pod) in doomed and pod_state.is_alive(pod) and _serves(pod)
    }


def leaving_since(pod: Manifest) -> datetime | None:
    """Since when it was chosen to go."""
    told = (pod["metadata"].get("annotations") or {}).get(pod_state.ANNOTATION_LEAVING, "")
    return parse_time(told.partition(" ")[0])


def cost_of(pod: Manifest) -> str | None:
    """Its deletion cost as it is written."""
    return (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_DELETION_COST)


def _rank(pod: Manifest, given: DrainInput) -> tuple[object, ...]:
    """Who drains already goes on with it; then the least loaded; of equal ones the youngest, whose cache is the coldest."""
    load = given.loads.get(_name(pod), WorkerLoad(in_flight=0))
    made = pod_state.creation_time(pod)
    age = -(made.timestamp() if made else 0.0)
    return not pod_state.is_victim(pod), load.in_flight, load.kv_used_tokens, age, _name(pod)


def _serves(pod: Manifest) -> bool:
    """It has requests, or may have."""
    return pod_state.is_ready(pod) or pod_state.is_victim(pod)


def _is_up(pod: Manifest) -> bool:
    """It serves, or sleeps: without its mark, a ReplicaSet could not tell it from the sleeper that takes its place."""
    return _serves(pod) or pod_state.is_meant_to_sleep(pod)


def _may_go(pod: Manifest, given: DrainInput) -> bool:
    """Empty, and known to be the first to go: its cost is written, and unless all go, it is not ready any more. Or late."""
    late = _deadline(pod, given)
    if late is not None and given.now >= late:
        return True
    is_first = cost_of(pod) == str(COST_EMPTY) and not (given.wanted and pod_state.is_ready(pod))
    return _name(pod) in given.empty and is_first


def _deadline(pod: Manifest, given: DrainInput) -> datetime | None:
    since = leaving_since(pod)
    return None if since is None else since + timedelta(seconds=given.drain_timeout_s) + _MARGIN


def _cost(pod: Manifest, given: DrainInput) -> int:
    return COST_EMPTY if _name(pod) in given.empty else COST_DRAINING


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])
