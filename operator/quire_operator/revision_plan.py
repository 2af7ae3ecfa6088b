"""Which revision a service should have, how the change to it goes, and how many pods and how much traffic each revision gets.

    Replacing  ->  (none)                        pods are replaced, no split of traffic
    Canary 1..n -> Promoting -> (none)           steps that are watched, then all pods
    Canary      -> Failed                        undone; waits for another spec or image
    anything    -> anything                      a new target begins anew; going back to the stable revision ends the canary at once

The state between two looks is `status.rollout`. This module must not know conditions, events' posting or manifests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from quire_operator.api.inference_service import InferenceService
from quire_operator.api.operations import CanarySpec
from quire_operator.api.status import RolloutStatus
from quire_operator.canary import judge_step
from quire_operator.decision import CanaryObservation, EventNote
from quire_operator.findings import HARMLESS
from quire_operator.observation import Observation
from quire_operator.platform import Platform
from quire_operator.revisions import StoredRevision, wanted_revision
from quire_operator.rollout import RevisionPods, RolloutInput, canary_replicas, plan_canary, plan_rollout
from quire_operator.timestamps import format_time, parse_time

_MAX_NOTE = 1000


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which revision the service should have."""

    target: StoredRevision
    """The spec's, or the present one while its upgrade waits."""
    stored: tuple[StoredRevision, ...]
    """All that are known, the target among them; newest first."""
    queued_image: str | None
    """The release's new default image, if the move to it waits for other services."""


@dataclass(frozen=True, kw_only=True)
class RevisionPlan:
    """What each revision gets."""

    rollout: RolloutStatus | None
    """For status; None if no change is under way."""
    replicas: Mapping[str, int]
    """Pods by revision; a revision that is not named gets no Deployment."""
    events: tuple[EventNote, ...] = ()
    look_again_s: float | None = None
    """When a step must be looked at, in seconds."""
    watches: tuple[str, str] | None = None
    """Stable and canary, while routers' counts are needed."""


@dataclass(frozen=True, kw_only=True)
class PlanInput:
    """What a plan depends on."""

    service: InferenceService
    choice: Choice
    previous: RolloutStatus | None
    """status.rollout as it was."""
    observation: Observation
    canary: CanaryObservation | None
    now: datetime
    others: Sequence[RevisionPods] = field(default=())
    """Other revisions with pods, oldest first."""

    @property
    def target(self) -> RevisionPods:
        """The target's pods."""
        return self.observation.of(self.choice.target.name)

    @property
    def rollout(self) -> RolloutInput:
        """For the arithmetic of pods."""
        spec = self.service.spec
        return RolloutInput(
            wanted=spec.replicas,
            strategy=spec.rollout.strategy,
            target=self.target,
            others=self.others,
            is_stalled=self.observation.is_stalled(self.choice.target.name),
        )


def choose_revision(
    service: InferenceService,
    stored: Sequence[StoredRevision],
    platform: Platform,
    *,
    current: str | None,
    may_upgrade: bool,
) -> Choice:
    """The spec's revision, unless only the release's default image is new and it is not this service's turn.

    `current` is status.revision: the last target.
    """
    wanted = wanted_revision(service, stored, platform)
    present = next((revision for revision in stored if revision.name == current), stored[0] if stored else None)
    is_upgrade = service.spec.engine.image is None and present is not None and present.has_shape_of(wanted)
    if is_upgrade and present is not None and present.name != wanted.name and not may_upgrade:
        return Choice(target=present, stored=tuple(stored), queued_image=wanted.image)
    rest = [revision for revision in stored if revision.name != wanted.name]
    return Choice(target=wanted, stored=(wanted, *rest), queued_image=None)


def is_upgrading(service: InferenceService, choice: Choice, plan: RevisionPlan) -> bool:
    """Whether the change under way is one of the release's default image."""
    if service.spec.engine.image is not None or plan.rollout is None or plan.rollout.phase == "Failed":
        return False
    target = choice.target
    leaving = [one for one in choice.stored if one.name in plan.replicas and one.name != target.name]
    return any(one.image != target.image and one.has_shape_of(target) for one in leaving)


def plan_revisions(given: PlanInput) -> RevisionPlan:
    """What each revision gets now."""
    numbers = {revision.name: revision.number for revision in given.choice.stored}
    previous, target = given.previous, given.choice.target.name
    relied_on = {previous.stable} if previous and previous.phase in {"Canary", "Failed"} else set()
    present = given.observation.active | {name for name in relied_on if name in numbers}
    names = sorted(present - {target}, key=lambda name: (numbers.get(name, 0), name))
    given = replace(given, others=tuple(given.observation.of(name) for name in names))
    state = _state(given)
    if state is not None and state.phase == "Failed" and state.stable:
        return _plan_failed(given, state, state.stable)
    if state is not None and state.phase == "Canary" and state.stable and given.service.spec.rollout.canary:
        return _plan_canary(given, state, state.stable, given.service.spec.rollout.canary)
    return _plan_replacing(given, state)


def weights_of(rollout: RolloutStatus | None, active: frozenset[str]) -> dict[str, int]:
    """The split of the traffic that a state means; every active revision is named, or none is."""
    if rollout is None or rollout.stable is None or rollout.phase == "Promoting":
        return {}
    weights = dict.fromkeys(sorted(active | {rollout.revision}), 0)
    if rollout.phase == "Canary":
        weights |= {rollout.stable: 100 - rollout.weight, rollout.revision: rollout.weight}
    else:
        weights |= {rollout.stable: 100}
    return weights if len(weights) > 1 else {}


def _state(given: PlanInput) -> RolloutStatus | None:
    """The state that this look begins with: the previous one if it is about this target, else that of a change that begins."""
    previous, target = given.previous, given.choice.target.name
    known = {revision.name for revision in given.choice.stored}
    if previous is not None and previous.revision == target:
        if previous.phase == "Canary" and not _can_have_canary(given, previous.stable):
            return previous.model_copy(update={"phase": "Promoting"})
        return previous if previous.phase != "Failed" or previous.stable in known else None
    if not given.others:
        return None
    stable = _stable(given)
    begun = RolloutStatus.model_validate(
        {"revision": target, "phase": "Replacing", "startedAt": format_time(given.now)}
    )
    if previous is not None and previous.stable == target and previous.phase in {"Canary", "Failed"}:
        # Back to the revision that carried the traffic: the canary gets nothing more from now on.
        return begun.model_copy(update={"stable": target})
    if _can_have_canary(given, stable):
        return begun.model_copy(update={"phase": "Canary", "stable": stable, "step": 1})
    return begun


def _stable(given: PlanInput) -> str | None:
    """The revision to compare a canary with: that of a canary which this change interrupts, else the one with most ready pods."""
    previous, others = given.previous, {pods.name: pods for pods in given.others}
    if previous and previous.phase in {"Canary", "Failed"} and previous.stable in others:
        return previous.stable
    serving = [pods for pods in given.others if pods.ready]
    return max(serving, key=lambda pods: pods.ready).name if serving else None


def _can_have_canary(given: PlanInput, stable: str | None) -> bool:
    """Recreate takes the canary's pods from the stable revision's, so there must be two."""
    spec = given.service.spec
    least = 2 if spec.rollout.strategy == "Recreate" else 1
    is_there = any(pods.name == stable for pods in given.others)
    return spec.rollout.canary is not None and is_there and spec.replicas >= least


def _plan_replacing(given: PlanInput, state: RolloutStatus | None) -> RevisionPlan:
    target, wanted = given.target, given.service.spec.replicas
    replicas = plan_rollout(given.rollout)
    is_over = target.ready >= wanted and not any(pods.alive or pods.desired for pods in given.others)
    if state is not None and is_over:
        note = f"all {wanted} replicas are of revision {target.name}"
        return RevisionPlan(rollout=None, replicas=replicas, events=(_normal("RolloutComplete", note),))
    return RevisionPlan(rollout=state, replicas=replicas)


def _plan_failed(given: PlanInput, state: RolloutStatus, stable: str) -> RevisionPlan:
    """The stable revision gets everything back; the canary's pods go at once, no request depends on them any more."""
    rest = [pods for pods in given.others if pods.name != stable]
    back = replace(given.rollout, target=given.observation.of(stable), others=rest, is_stalled=False)
    replicas = plan_rollout(back)
    if given.service.spec.rollout.strategy == "Recreate":
        held = given.target.alive + given.target.terminating
        replicas[stable] = max(back.target.desired, min(replicas[stable], given.service.spec.replicas - held))
    if state.revision in given.observation.active:
        replicas[state.revision] = 0
    return RevisionPlan(rollout=state, replicas=replicas)


def _plan_canary(given: PlanInput, state: RolloutStatus, stable: str, spec: CanarySpec) -> RevisionPlan:
    if state.step > len(spec.steps):
        return _promote(given, state, "all steps have passed")
    started = parse_time(state.step_started_at)
    if started is None:
        return _begin_step(given, state, stable, spec)
    verdict = judge_step(
        spec, started_at=started, now=given.now, observation=given.canary, stable=stable, canary=state.revision
    )
    if verdict.action == "Fail":
        return _fail(given, state, stable, verdict.message)
    if verdict.action == "Wait":
        seen = state.model_copy(update={"message": verdict.message[:_MAX_NOTE]})
        return _stay(given, seen, stable, spec, verdict.look_again_s)
    if state.step >= len(spec.steps):
        return _promote(given, state, verdict.message)
    following = {"step": state.step + 1, "step_started_at": None, "message": verdict.message[:_MAX_NOTE]}
    return _begin_step(given, state.model_copy(update=following), stable, spec)


def _begin_step(given: PlanInput, state: RolloutStatus, stable: str, spec: CanarySpec) -> RevisionPlan:
    """The watch begins when the step's pods are ready; until then the weight stays, and failing is failing still."""
    if state.weight and given.canary is not None:
        since = parse_time(state.started_at) or given.now
        verdict = judge_step(
            spec, started_at=since, now=given.now, observation=given.canary, stable=stable, canary=state.revision
        )
        if verdict.action == "Fail":
            return _fail(given, state, stable, verdict.message)
    weight = spec.steps[state.step - 1]
    needed = _share(given, spec, state)
    if given.target.ready < needed:
        message = f"step {state.step} of {len(spec.steps)}: {given.target.ready} of {needed} canary pods are ready"
        return _stay(given, state.model_copy(update={"message": message}), stable, spec, None)
    begun = state.model_copy(update={"weight": weight, "step_started_at": format_time(given.now), "message": ""})
    note = f"revision {state.revision} gets {weight} % of the traffic (step {state.step} of {len(spec.steps)})"
    plan = _stay(given, begun, stable, spec, float(min(spec.interval_seconds, 15)))
    return replace(plan, events=(_normal("CanaryStep", note),))


def _stay(
    given: PlanInput, state: RolloutStatus, stable: str, spec: CanarySpec, look_again_s: float | None
) -> RevisionPlan:
    return RevisionPlan(
        rollout=state,
        replicas=plan_canary(given.rollout, stable, _share(given, spec, state)),
        look_again_s=look_again_s,
        watches=(stable, state.revision) if state.weight else None,
    )


def _share(given: PlanInput, spec: CanarySpec, state: RolloutStatus) -> int:
    """Pods that the step's canary should have."""
    wanted = given.service.spec.replicas
    share = canary_replicas(wanted, spec.steps[state.step - 1])
    return min(share, wanted - 1) if given.service.spec.rollout.strategy == "Recreate" else share


def _promote(given: PlanInput, state: RolloutStatus, why: str) -> RevisionPlan:
    promoted = state.model_copy(update={"phase": "Promoting", "message": why[:_MAX_NOTE], "step_started_at": None})
    event = _normal("CanaryPromoted", f"revision {state.revision} gets all replicas: {why}")
    return RevisionPlan(rollout=promoted, replicas=plan_rollout(given.rollout), events=(event,))


def _fail(given: PlanInput, state: RolloutStatus, stable: str, seen: str) -> RevisionPlan:
    """What its pods show goes into the message: they are about to be gone, and with them why requests failed."""
    troubles = [
        one.message for one in given.observation.findings(revision=state.revision) if one.reason not in HARMLESS
    ]
    why = "; ".join([seen, *troubles[:1]])
    failed = state.model_copy(
        update={"phase": "Failed", "weight": 0, "step_started_at": None, "message": why[:_MAX_NOTE]}
    )
    message = f"revision {state.revision} was rolled back to {stable}: {why}"[:_MAX_NOTE]
    event = EventNote(type="Warning", reason="CanaryFailed", message=message)
    return replace(_plan_failed(given, failed, stable), events=(event,))


def seconds_until(moment: datetime | None, now: datetime) -> float | None:
    """None for no moment or one that has passed."""
    return None if moment is None or moment <= now else (moment - now) / timedelta(seconds=1)


def _normal(reason: str, message: str) -> EventNote:
    return EventNote(type="Normal", reason=reason, message=message[:_MAX_NOTE])
