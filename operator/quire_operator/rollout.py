"""How many pods each revision should have, from how many it has: surge, recreate, and beside a canary.

    wanted      replicas that the service should have
    floor       ready replicas that a removal must leave: wanted for Surge, one less for Recreate
    capacity    pods that there may be at once: wanted and a quarter for Surge, wanted for Recreate

Each call looks at the pods as they are and takes the next steps, so the same call again after any of them, a restart or a change of
mind in the middle, goes on rightly. This module must not know Kubernetes, traffic or time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Strategy = Literal["Surge", "Recreate"]


@dataclass(frozen=True, kw_only=True)
class RevisionPods:
    """The pods of one revision as they are."""

    name: str
    """The revision."""
    desired: int = 0
    """What its Deployment was last asked for."""
    alive: int = 0
    """Pods that exist and were not told to end."""
    terminating: int = 0
    """Pods that are ending; they hold their devices still."""
    ready: int = 0
    """Living pods that serve."""
    broken: int = 0
    """Living pods that will not become ready by themselves (image, crash, configuration, no room)."""

    @property
    def safe_ready(self) -> int:
        """Ready pods that remain when the Deployment has become as small as it was asked to."""
        return min(self.ready, self.desired)


@dataclass(frozen=True, kw_only=True)
class RolloutInput:
    """What a plan depends on."""

    wanted: int
    """Replicas of the service."""
    strategy: Strategy
    """Surge or Recreate."""
    target: RevisionPods
    """The revision that should have all pods in the end (or, for a canary, its share)."""
    others: Sequence[RevisionPods]
    """All others that have pods or a Deployment, oldest first."""
    is_stalled: bool = False
    """The target's pods do not become ready: a growing service then grows with pods of the revision that works."""


def plan_rollout(rollout: RolloutInput) -> dict[str, int]:
    """Pods per revision: the target grows into what the capacity leaves, the others shrink to what the floor leaves."""
    wanted = rollout.wanted
    surge = -(-wanted // 4) if rollout.strategy == "Surge" else 0
    missing = 1 if rollout.strategy == "Recreate" else 0
    target = replace(rollout.target, desired=min(rollout.target.desired, wanted))
    if rollout.is_stalled:
        target = _without_surplus(target, surge)
    plan = _shrink(rollout.others, wanted, wanted - missing, target)
    capacity = wanted + surge
    if rollout.is_stalled and rollout.others:
        _grow_working(plan, rollout, target, capacity)
    room = capacity - sum(_occupied(pods, plan[pods.name], rollout.strategy) for pods in rollout.others)
    if rollout.strategy == "Recreate" and rollout.others:
        room -= target.terminating
    plan[target.name] = max(target.desired, min(wanted, room), 0)
    return plan


def plan_canary(rollout: RolloutInput, stable: str, share: int) -> dict[str, int]:
    """Pods per revision while the target gets `share` replicas and `stable`, one of the others, goes on with the rest.

    Surge adds the canary's pods to the wanted ones; Recreate takes them from the stable revision's, one at a time.
    """
    (kept,) = (pods for pods in rollout.others if pods.name == stable)
    rest = [pods for pods in rollout.others if pods.name != stable]
    target, wanted = rollout.target, rollout.wanted
    if rollout.strategy == "Surge":
        inner = replace(rollout, target=kept, others=rest, is_stalled=False)
        return {**plan_rollout(inner), target.name: share}
    share = min(share, max(wanted - 1, 0))
    target = replace(target, desired=min(target.desired, share))
    plan = _shrink([*rest, kept], wanted, wanted - 1, target, keep=wanted - share)
    used = sum(_occupied(pods, plan[pods.name], "Recreate") for pods in rollout.others)
    plan[target.name] = max(target.desired, min(share, wanted - used), 0)
    plan[stable] = max(plan[stable], wanted - share - sum(plan[pods.name] for pods in rest))
    return plan


def canary_replicas(wanted: int, weight: int) -> int:
    """The canary's share of the replicas: its share of the traffic, rounded up."""
    return max(1, -(-wanted * weight // 100))


def _without_surplus(target: RevisionPods, surge: int) -> RevisionPods:
    """Pods of a target that does not come up are held to the surge, so that the room goes to pods that work."""
    return replace(target, desired=min(target.desired, max(target.ready, surge, 1)))


def _shrink(
    others: Sequence[RevisionPods], wanted: int, floor: int, target: RevisionPods, *, keep: int = 0
) -> dict[str, int]:
    """The others' pods after removals, at least `keep` of them; broken ones go first, then those not ready, then ready ones.

    A pod that is not ready may be so for a moment only, or be about to serve: such pods count as if they served, or one missed
    probe of all pods would let a rollout delete them all.
    """
    if wanted == 0:
        return {pods.name: 0 for pods in others}
    plan = {pods.name: pods.desired for pods in others}
    removable = max(0, sum(plan.values()) - keep)
    for pods in others:
        removable -= _remove(plan, pods, min(_hopeless(pods), removable))
    idle = min(removable, max(0, sum(plan.values()) + target.safe_ready - floor))
    for pods in others:
        idle -= _remove(plan, pods, min(plan[pods.name] - pods.safe_ready, idle))
    ready = target.safe_ready + sum(pods.safe_ready for pods in others)
    spare = min(idle, max(0, ready - floor))
    for pods in others:
        spare -= _remove(plan, pods, min(plan[pods.name], spare))
    return plan


def _hopeless(pods: RevisionPods) -> int:
    """Pods that a removal costs nothing: broken, or asked for and never made (a quota)."""
    return min(pods.desired - pods.safe_ready, pods.broken + max(0, pods.desired - pods.alive))


def _remove(plan: dict[str, int], pods: RevisionPods, count: int) -> int:
    count = max(0, count)
    plan[pods.name] -= count
    return count


def _grow_working(plan: dict[str, int], rollout: RolloutInput, target: RevisionPods, capacity: int) -> None:
    """Gives what is missing, as far as there is room now, to the newest revision that has ready pods, if any has."""
    working = [pods.name for pods in rollout.others if pods.safe_ready]
    if not working:
        return
    beside = target.desired if rollout.strategy == "Recreate" else target.safe_ready
    missing = rollout.wanted - beside - sum(plan.values())
    used = sum(_occupied(pods, plan[pods.name], rollout.strategy) for pods in rollout.others)
    room = capacity - used - _occupied(rollout.target, target.desired, rollout.strategy)
    plan[working[-1]] += max(0, min(missing, room))


def _occupied(pods: RevisionPods, planned: int, strategy: Strategy) -> int:
    """Pods that stand in the target's way; under Recreate one that is ending holds its devices to the end."""
    alive = max(planned, pods.alive)
    return alive + pods.terminating if strategy == "Recreate" else alive
