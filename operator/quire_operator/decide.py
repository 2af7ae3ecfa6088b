"""The operator's brain: one pure function from what is to what should be.

It takes no step that the next look could not take as well: whatever was applied of an earlier decision, and whoever decides next, the
same state leads on. It never raises on a bad spec; that is a condition. This module must not know the API server, time or routers:
they are in the snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from quire_contract import names
from quire_operator import pod_state, scaling_objects
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.status import RolloutStatus
from quire_operator.api.validation import InvalidResourceError, NotYetSupportedError, parse_service
from quire_operator.autoscale.report import ScalingFacts
from quire_operator.decision import Decision, EventNote, ServiceSnapshot
from quire_operator.desired_state import desired_state, refuse_unsupported
from quire_operator.drain_plan import DrainInput, DrainPlan, doomed_only, plan_drains
from quire_operator.lost_pods import lost_pods, without_lost
from quire_operator.manifests.parts import Manifest
from quire_operator.observation import Observation, observe
from quire_operator.platform import Platform
from quire_operator.revision_plan import (
    Choice,
    PlanInput,
    RevisionPlan,
    choose_revision,
    is_upgrading,
    plan_revisions,
    seconds_until,
    weights_of,
)
from quire_operator.revisions import (
    Revision,
    StoredRevision,
    controller_revision,
    kept_revisions,
    revision_name,
    stored_revisions,
)
from quire_operator.standby import READY_WITHIN, StandbyPlan, with_standby
from quire_operator.starts import unreported
from quire_operator.status_report import Report, build_status, problems_text, transition_events

FETCH_LOOK_EVERY_S = 10.0
"""How often a download's progress is read."""
_CREATING_LOOK = timedelta(seconds=121)
"""A pod that has a node and no containers after two minutes lacks something; nothing in the API changes then."""


@dataclass(frozen=True, kw_only=True)
class _Refused:
    """Why a spec is not carried out."""

    reason: str
    message: str


def decide_service(snapshot: ServiceSnapshot, platform: Platform) -> Decision:
    """What should exist and be said for one InferenceService now."""
    observation = observe(snapshot)
    accepted = _accept(snapshot, platform)
    if isinstance(accepted, _Refused) or is_paused(snapshot.document):
        return _leave_alone(snapshot, platform, observation, accepted)
    return _carry_out(snapshot, platform, observation, accepted)


def is_paused(document: Mapping[str, Any]) -> bool:
    """Whether somebody asked the operator to keep its hands off this service's objects."""
    annotations = document["metadata"].get("annotations") or {}
    return str(annotations.get(names.ANNOTATION_PAUSED, "")).lower() == "true"


def _accept(snapshot: ServiceSnapshot, platform: Platform) -> InferenceService | _Refused:
    try:
        service = parse_service(dict(snapshot.document))
        refuse_unsupported(service, platform)
    except NotYetSupportedError as error:
        return _Refused(reason="NotYetSupported", message=problems_text(error.problems))
    except InvalidResourceError as error:
        return _Refused(reason="InvalidSpec", message=problems_text(error.problems))
    if snapshot.conflicts:
        return _Refused(reason="NameConflict", message=problems_text(snapshot.conflicts))
    return service


def _leave_alone(
    snapshot: ServiceSnapshot, platform: Platform, observation: Observation, accepted: InferenceService | _Refused
) -> Decision:
    """Pods, split and state stay as they are; only status goes on telling."""
    previous, stored = _status(snapshot), stored_revisions(snapshot.children)
    rollout = _rollout(previous)
    weights = weights_of(rollout, observation.active)
    service = None if isinstance(accepted, _Refused) else accepted
    target = next((revision for revision in stored if revision.name == previous.get("revision")), None)
    refusal = (accepted.reason, accepted.message) if isinstance(accepted, _Refused) else None
    report = Report(
        document=snapshot.document,
        observation=observation,
        platform=platform,
        service=service,
        refusal=refusal,
        is_paused=is_paused(snapshot.document),
        is_behind=service is not None and revision_name(service, platform) != previous.get("revision"),
        wanted=_wanted(snapshot),
        target=target if service else None,
        stored=stored,
        rollout=rollout,
        weights=weights,
        scaling=_at_rest(snapshot, refusal),
    )
    status = build_status(report)
    return Decision(
        manifests=None,
        status=status,
        weights=weights,
        events=tuple(transition_events(report, status)),
        requeue_after_s=FETCH_LOOK_EVERY_S if observation.fetching_pods else None,
        is_upgrading=False,
        wants_canary_stats=None,
        wants_fetch_progress=bool(observation.fetching_pods),
        wants_startup=_unreported(snapshot),
    )


def _carry_out(
    snapshot: ServiceSnapshot, platform: Platform, observation: Observation, service: InferenceService
) -> Decision:
    previous, stored = _status(snapshot), stored_revisions(snapshot.children)
    current = previous.get("revision")
    choice = choose_revision(service, stored, platform, current=current, may_upgrade=snapshot.may_upgrade)
    plan = plan_revisions(
        PlanInput(
            service=service,
            choice=choice,
            previous=_rollout(previous),
            observation=observation,
            canary=snapshot.canary,
            now=snapshot.now,
        )
    )
    plan, standby = with_standby(service, plan, choice.target.name, observation, snapshot.doomed)
    plan, drains = _drained(snapshot, service, choice, plan, observation, standby)
    lost = lost_pods(snapshot.pods)
    plan = replace(plan, replicas=without_lost(plan.replicas, snapshot.pods, lost))
    kept = _kept(service, choice, plan, observation)
    weights = weights_of(plan.rollout, observation.active)
    report = Report(
        document=snapshot.document,
        observation=observation,
        platform=platform,
        service=service,
        wanted=service.spec.replicas,
        target=choice.target,
        stored=kept,
        rollout=plan.rollout,
        weights=weights,
        queued_image=choice.queued_image,
        scaling=_scaling(snapshot, service),
    )
    status = build_status(report)
    return Decision(
        manifests=(*_manifests(service, kept, plan, platform), *_scaling_object(service, snapshot, platform)),
        status=status,
        weights=weights,
        events=(
            *_created(stored, choice),
            *plan.events,
            *_doomed(snapshot, drains),
            *_given_up(lost),
            *transition_events(report, status),
        ),
        requeue_after_s=_look_again(observation, choice, plan, drains),
        is_upgrading=is_upgrading(service, choice, plan),
        wants_canary_stats=plan.watches,
        wants_fetch_progress=bool(observation.fetching_pods),
        leaving=drains.leaving,
        wants_startup=_unreported(snapshot),
        sleep=standby.asleep,
        wake=standby.awake,
    )


def _drained(
    snapshot: ServiceSnapshot,
    service: InferenceService,
    choice: Choice,
    plan: RevisionPlan,
    observation: Observation,
    standby: StandbyPlan,
) -> tuple[RevisionPlan, DrainPlan]:
    """The plan with those added that must drain first. While revisions are exchanged, pods drain as they are told to end."""
    target = choice.target.name
    if not snapshot.may_drain:
        return plan, DrainPlan()
    if plan.rollout is not None or target not in plan.replicas:
        return plan, DrainPlan(leaving=doomed_only(snapshot.pods, snapshot.doomed, snapshot.empty))
    drains = plan_drains(
        DrainInput(
            pods=[pod for pod in snapshot.pods if pod_state.revision(pod) == target],
            told=observation.of(target).desired,
            wanted=plan.replicas[target],
            loads=snapshot.loads,
            empty=snapshot.empty,
            doomed=snapshot.doomed,
            drain_timeout_s=float(service.spec.engine.drain_timeout_seconds),
            now=snapshot.now,
            resting=standby.resting,
        )
    )
    return replace(plan, replicas={**plan.replicas, target: drains.replicas}), drains


def _doomed(snapshot: ServiceSnapshot, drains: DrainPlan) -> list[EventNote]:
    """What is told of a replica that must go, once: when it does not drain yet."""
    return [
        EventNote(
            type="Warning",
            reason="ReplicaDoomed",
            message=f"pod {name} drains, and another is asked for beside it: {drains.leaving[name].why}"[:1000],
        )
        for name in snapshot.doomed
        if name in drains.leaving
        and not any(pod["metadata"]["name"] == name and pod_state.is_victim(pod) for pod in snapshot.pods)
    ]


def _given_up(lost: Mapping[str, str]) -> list[EventNote]:
    return [
        EventNote(type="Warning", reason="PodReplaced", message=f"a fresh pod takes the place of {name}: {why}"[:1000])
        for name, why in lost.items()
    ]


def _kept(
    service: InferenceService, choice: Choice, plan: RevisionPlan, observation: Observation
) -> list[StoredRevision]:
    needed = {choice.target.name, *plan.replicas, *observation.active}
    if plan.rollout is not None:
        needed |= {plan.rollout.revision, plan.rollout.stable or ""}
    return kept_revisions(choice.stored, needed, service.spec.rollout.revision_history_limit)


def _manifests(
    service: InferenceService, kept: list[StoredRevision], plan: RevisionPlan, platform: Platform
) -> tuple[Manifest, ...]:
    """ControllerRevisions first: a Deployment whose template is not stored could not be told from a stranger's."""
    revisions = [
        Revision(name=one.name, role=names.ROLE_WORKER, template=one.template, replicas=plan.replicas[one.name])
        for one in kept
        if one.name in plan.replicas
    ]
    records = [controller_revision(service, revision) for revision in kept]
    return (*records, *desired_state(service, revisions, platform))


def _scaling_object(service: InferenceService, snapshot: ServiceSnapshot, platform: Platform) -> Sequence[Manifest]:
    """The object by which KEDA or an HPA writes the replicas, if one does."""
    facts = snapshot.scaling
    if facts is None or not facts.provider.has_object:
        return ()
    return scaling_objects.provider_manifests(
        service,
        facts.provider,
        facts.autoscalers,
        platform,
        document=snapshot.document,
        children=snapshot.children,
        capacity=facts.capacity,
    )


def _scaling(snapshot: ServiceSnapshot, service: InferenceService | None) -> ScalingFacts | None:
    """With what another autoscaler says of itself, or the server of its object."""
    facts = snapshot.scaling
    if facts is None or service is None or not facts.provider.has_object:
        return facts
    refused = next(filter(scaling_objects.is_about_object, snapshot.apply_errors), None)
    if refused is not None:
        return replace(facts, said=("False", "ObjectRefused", str(refused)))
    said = scaling_objects.reported(service, facts.provider, facts.autoscalers, snapshot.children)
    return replace(facts, said=said)


def _at_rest(snapshot: ServiceSnapshot, refusal: tuple[str, str] | None) -> ScalingFacts | None:
    """Whoever writes /scale meanwhile, nothing comes of it."""
    paused = ("Paused", f"the service has the annotation {names.ANNOTATION_PAUSED}")
    return None if snapshot.scaling is None else replace(snapshot.scaling, held=refusal or paused)


def _created(stored: list[StoredRevision], choice: Choice) -> list[EventNote]:
    if any(revision.name == choice.target.name for revision in stored):
        return []
    message = f"revision {choice.target.name} with image {choice.target.image}"
    return [EventNote(type="Normal", reason="RevisionCreated", message=message[:1000])]


def _look_again(observation: Observation, choice: Choice, plan: RevisionPlan, drains: DrainPlan) -> float | None:
    moments = [
        seconds_until(drains.look_again, observation.now),
        plan.look_again_s,
        seconds_until(observation.deadline(choice.target.name), observation.now),
        FETCH_LOOK_EVERY_S if observation.fetching_pods else None,
        *(
            seconds_until(woken_at + READY_WITHIN, observation.now)
            for view in observation.pods
            if (woken_at := pod_state.woken_at(view.pod)) and not pod_state.is_ready(view.pod)
        ),
        *(
            seconds_until(placed + _CREATING_LOOK, observation.now)
            for view in observation.pods
            if view.finding and view.finding.reason == "Starting"
            if (placed := pod_state.condition_time(view.pod, "PodScheduled"))
        ),
    ]
    return min((moment for moment in moments if moment is not None), default=None)


def _unreported(snapshot: ServiceSnapshot) -> str | None:
    return unreported(snapshot.pods, _status(snapshot).get("lastStart"), snapshot.now)


def _status(snapshot: ServiceSnapshot) -> Mapping[str, Any]:
    return snapshot.document.get("status") or {}


def _rollout(status: Mapping[str, Any]) -> RolloutStatus | None:
    """The state that an earlier decision left; none if another version wrote what we cannot read: the change then begins anew."""
    written = status.get("rollout")
    if not written:
        return None
    try:
        return RolloutStatus.model_validate(written)
    except ValidationError:
        return None


def _wanted(snapshot: ServiceSnapshot) -> int:
    """Of a spec that may be invalid: what it says, if that can be read, else what there is."""
    replicas = (snapshot.document.get("spec") or {}).get("replicas")
    return replicas if isinstance(replicas, int) and replicas >= 0 else int(_status(snapshot).get("replicas", 0))
