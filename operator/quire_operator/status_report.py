"""Status of an InferenceService: conditions, counts, and the events that their changes are.

    Accepted       the spec can be carried out: reason InvalidSpec, NotYetSupported, NameConflict otherwise
    ModelReady     the model's files are in the pods; only for sources that are fetched
    WorkloadReady  all wanted replicas serve
    Progressing    False: a change or a start is stuck and waits for a person (or a canary was rolled back)
    UpToDate       all pods are of the spec's revision and of the release's image
    ScalingReady   demand is known, and the provider of spec.scaling is there to follow it; only for services that scale
    Paused         only there while the service is paused
    Ready          sums up: the accepted spec's name is answered by at least one replica

`kubectl wait --for=condition=Ready` therefore ends when requests are answered, WorkloadReady when all replicas are there, UpToDate when
a change has come through. Ready stays True while a new revision fails and the old one serves, with what is wrong in its message; it is
False for a spec that is refused, though pods of the last good one go on, because what was asked for is not served; and False with
reason ScaledToZero when no replicas are wanted. This module must not decide anything about pods.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.status import RolloutStatus
from quire_operator.autoscale.report import ScalingFacts, scaling_ready, scaling_status
from quire_operator.decision import EventNote
from quire_operator.findings import HARMLESS, ORDER, Finding, describe_progress
from quire_operator.manifests import fetch
from quire_operator.observation import Observation, fetcher
from quire_operator.platform import Platform
from quire_operator.revisions import StoredRevision
from quire_operator.starts import next_start
from quire_operator.timestamps import format_time

MAX_MESSAGE = 2000
MAX_EVENT_MESSAGE = 1000
MAX_REVISIONS = 20


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One condition before it is compared with what it was."""

    type: str
    status: str
    """True, False or Unknown."""
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What status is made from."""

    document: Mapping[str, Any]
    """With the previous status."""
    observation: Observation
    platform: Platform
    service: InferenceService | None
    """None if the spec is refused."""
    refusal: tuple[str, str] | None = None
    """Reason and message, if the spec is refused."""
    is_paused: bool = False
    is_behind: bool = False
    """Paused, while the spec asks for another revision than the one that was last carried out."""
    wanted: int = 1
    """Replicas."""
    target: StoredRevision | None = None
    """The revision of the spec; None if it is refused."""
    stored: Sequence[StoredRevision] = ()
    """Those that are kept, newest first."""
    rollout: RolloutStatus | None = None
    weights: Mapping[str, int]
    queued_image: str | None = None
    """A new default image that waits for its turn."""
    scaling: ScalingFacts | None = None
    """What the autoscaler says, if the service scales."""

    @property
    def previous(self) -> Mapping[str, Any]:
        """The status as it was."""
        return self.document.get("status") or {}

    @property
    def served_name(self) -> str:
        """The name that clients use; of the last good spec if this one is refused."""
        return self.service.served_name if self.service else str(self.previous.get("model", ""))


def build_status(report: Report) -> dict[str, Any]:
    """The whole status, equal to the previous one if nothing changed."""
    observation, meta = report.observation, report.document["metadata"]
    target = report.target.name if report.target else report.previous.get("revision")
    selector = f"{names.LABEL_SERVICE}={meta['name']},{names.LABEL_ROLE}={names.ROLE_WORKER}"
    status: dict[str, Any] = {
        "observedGeneration": int(meta.get("generation", 0)),
        "conditions": _conditions(report),
        "replicas": observation.replicas,
        "readyReplicas": observation.ready,
        "updatedReplicas": observation.of(target).alive - observation.asleep(target) if target else 0,
        "selector": selector,
        "url": _url(report.platform),
        "model": report.served_name or None,
        "revision": target,
        "revisions": _revisions(report),
        "rollout": _rollout(report.rollout),
        "fetch": _fetch(observation),
        "scaling": _with_standby(
            scaling_status(report.scaling, report.service, report.previous.get("scaling")), report
        ),
        "lastStart": next_start(
            [view.pod for view in observation.pods], report.observation.startups, report.previous.get("lastStart")
        ),
    }
    return {key: content for key, content in status.items() if content is not None}


def transition_events(report: Report, status: Mapping[str, Any]) -> list[EventNote]:
    """Events for what changed from the previous status to this one."""
    before = {entry["type"]: entry for entry in report.previous.get("conditions", ())}
    after = {entry["type"]: entry for entry in status["conditions"]}
    events: list[EventNote] = []
    accepted = after["Accepted"]
    if accepted["status"] == "False" and _differs(before, accepted, "message"):
        events.append(_warning(accepted["reason"], accepted["message"]))
    if ("Paused" in after) != ("Paused" in before):
        told = (
            "the operator changes nothing until the annotation is gone" if "Paused" in after else "the operator goes on"
        )
        events.append(EventNote(type="Normal", reason="Paused" if "Paused" in after else "Resumed", message=told))
    scaling = after.get("ScalingReady")
    if scaling and scaling["status"] == "False" and _differs(before, scaling, "reason"):
        events.append(_warning(scaling["reason"], scaling["message"]))
    for kind in ("WorkloadReady", "Progressing"):
        entry = after[kind]
        is_trouble = entry["reason"] in ORDER and entry["reason"] not in HARMLESS
        if entry["status"] == "False" and is_trouble and _differs(before, entry, "reason"):
            events.append(_warning(entry["reason"], entry["message"]))
    if after["UpToDate"]["reason"] == "UpgradeQueued" and _differs(before, after["UpToDate"], "message"):
        events.append(EventNote(type="Normal", reason="UpgradeQueued", message=after["UpToDate"]["message"]))
    first: dict[str, EventNote] = {}
    for event in events:
        first.setdefault(event.reason, event)
    return list(first.values())


def _differs(before: Mapping[str, Any], entry: Mapping[str, Any], key: str) -> bool:
    return bool(before.get(entry["type"], {}).get(key) != entry[key])


def _warning(reason: str, message: str) -> EventNote:
    return EventNote(type="Warning", reason=reason, message=message[:MAX_EVENT_MESSAGE])


def _conditions(report: Report) -> list[dict[str, Any]]:
    findings = report.observation.findings()
    workload = _workload(report, findings)
    progressing = _progressing(report)
    verdicts = [_ready(report, findings, workload, progressing), _accepted(report)]
    model = _model(report)
    verdicts += [*([model] if model else []), workload, progressing, _up_to_date(report)]
    if report.is_paused:
        told = f"the operator changes nothing while annotation {names.ANNOTATION_PAUSED} is true; remove it to go on"
        verdicts.append(Verdict(type="Paused", status="True", reason="PausedByAnnotation", message=told))
    before = {entry["type"]: entry for entry in report.previous.get("conditions", ())}
    if report.scaling is not None:
        status, reason, message = scaling_ready(report.scaling, before.get("ScalingReady"))
        verdicts.append(Verdict(type="ScalingReady", status=status, reason=reason, message=message))
    generation = int(report.document["metadata"].get("generation", 0))
    return [_dated(verdict, before.get(verdict.type), generation, report.observation.now) for verdict in verdicts]


def _dated(verdict: Verdict, before: Mapping[str, Any] | None, generation: int, now: datetime) -> dict[str, Any]:
    is_same = before is not None and before.get("status") == verdict.status
    since = before.get("lastTransitionTime") if before and is_same else None
    message = verdict.message if len(verdict.message) <= MAX_MESSAGE else verdict.message[: MAX_MESSAGE - 1] + "…"
    return {
        "type": verdict.type,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": message,
        "lastTransitionTime": since or format_time(now),
        "observedGeneration": generation,
    }


def _ready(report: Report, findings: Sequence[Finding], workload: Verdict, progressing: Verdict) -> Verdict:
    observation = report.observation
    if report.refusal:
        reason, message = report.refusal
        on = f"; {observation.ready} replicas of the last good spec go on serving" if observation.ready else ""
        return Verdict(type="Ready", status="False", reason=reason, message=message + on)
    if report.wanted == 0:
        name = report.document["metadata"]["name"]
        wakes = "a request wakes it" if report.scaling else f"kubectl scale infsvc/{name} --replicas=1"
        message = f"no replicas are wanted; {wakes}"
        return Verdict(type="Ready", status="False", reason="ScaledToZero", message=message)
    serving = observation.serving(report.served_name)
    if serving == 0:
        reason, message = workload.reason, workload.message
        if observation.ready:
            reason, message = "NotServingYet", f"no replica serves {report.served_name!r} yet; {message}"
        return Verdict(type="Ready", status="False", reason=reason, message=message)
    reason = "Serving" if serving >= report.wanted else "PartiallyServing"
    count = f"{serving} of {report.wanted} replicas serve" if serving < report.wanted else _plural(serving) + " serving"
    trouble = [finding.message for finding in findings if finding.reason not in HARMLESS]
    notes = [progressing.message] if progressing.status == "False" else trouble[:1]
    if not notes and workload.status != "True" and findings:
        notes = [findings[0].message]
    return Verdict(type="Ready", status="True", reason=reason, message="; ".join([count, *notes]))


def _accepted(report: Report) -> Verdict:
    if report.refusal:
        return Verdict(type="Accepted", status="False", reason=report.refusal[0], message=report.refusal[1])
    return Verdict(type="Accepted", status="True", reason="Accepted", message="the spec can be carried out")


def _model(report: Report) -> Verdict | None:
    """None for a model that nobody fetches."""
    observation = report.observation
    if report.target is None or not fetch.fetches(report.target.template):
        return None
    containers = [found for view in observation.pods if (found := fetcher(view.pod))]
    failed = [
        finding
        for finding in observation.findings(revision=report.target.name)
        if finding.reason.startswith("Model") or finding.reason in {"InvalidModel", "NoSpace"}
    ]
    if failed:
        return Verdict(type="ModelReady", status="False", reason=failed[0].reason, message=failed[0].message)
    if observation.fetching_pods:
        told = describe_progress(observation.slowest_fetch)
        return Verdict(type="ModelReady", status="False", reason="FetchingModel", message=told)
    done = [entry for entry in containers if entry.last_end and entry.last_end.exit_code == 0]
    if done:
        message = f"{report.service.spec.model.uri if report.service else 'the model'} is fetched"
        return Verdict(type="ModelReady", status="True", reason="Fetched", message=message)
    return Verdict(type="ModelReady", status="Unknown", reason="Waiting", message="no pod has begun to fetch the model")


def _workload(report: Report, findings: Sequence[Finding]) -> Verdict:
    ready, wanted = report.observation.ready, report.wanted
    if ready >= wanted:
        message = f"{ready} of {wanted} replicas are ready" if wanted else "no replicas are wanted"
        reason = "AllReady" if wanted else "ScaledToZero"
        return Verdict(type="WorkloadReady", status="True", reason=reason, message=message)
    reason, message = "WaitingForPods", f"{ready} of {wanted} replicas are ready"
    if findings:
        reason, message = findings[0].reason, f"{message}; {findings[0].message}"
    return Verdict(type="WorkloadReady", status="False", reason=reason, message=message)


def _progressing(report: Report) -> Verdict:
    """About the revision that is wanted: the workload may be ready while a new revision is stuck."""
    rollout, observation = report.rollout, report.observation
    if rollout and rollout.phase == "Failed":
        meta = report.document["metadata"]
        message = (
            f"revision {rollout.revision} was rolled back to {rollout.stable}: {rollout.message}; "
            f"take the change back (quire rollback {meta['name']} -n {meta['namespace']}), or change the spec to try again"
        )
        return Verdict(type="Progressing", status="False", reason="CanaryFailed", message=message)
    target = report.target.name if report.target else str(report.previous.get("revision", ""))
    if report.wanted and target and observation.is_stalled(target):
        found = [finding for finding in observation.findings(revision=target) if finding.reason not in HARMLESS]
        since = observation.stuck_since(target)
        late = (
            f"revision {target} has a pod that is not ready since {format_time(since)}"
            if since
            else f"revision {target} is stuck"
        )
        blocking = next((finding for finding in found if finding.is_blocking), found[0] if found else None)
        reason = blocking.reason if blocking else "ProgressDeadlineExceeded"
        message = f"revision {target}: {blocking.message}" if blocking else f"{late}; see kubectl describe pod"
        return Verdict(type="Progressing", status="False", reason=reason, message=message)
    if rollout:
        return Verdict(type="Progressing", status="True", reason=rollout.phase, message=_rollout_note(report, rollout))
    if observation.of(target).ready < report.wanted:
        return Verdict(type="Progressing", status="True", reason="Starting", message="pods are starting")
    return Verdict(type="Progressing", status="True", reason="Complete", message="nothing is left to do")


def _rollout_note(report: Report, rollout: RolloutStatus) -> str:
    if rollout.phase == "Canary":
        return f"canary {rollout.revision} has {rollout.weight} % of the traffic: {rollout.message or 'the step has begun'}"
    ready = report.observation.of(rollout.revision).ready
    return f"{ready} of {report.wanted} replicas of revision {rollout.revision} are ready"


def _up_to_date(report: Report) -> Verdict:
    def verdict(status: str, reason: str, message: str) -> Verdict:
        return Verdict(type="UpToDate", status=status, reason=reason, message=message)

    if report.refusal:
        return verdict("False", report.refusal[0], "pods are of the last good spec; the present one is refused")
    target = report.target.name if report.target else ""
    if report.is_behind:
        return verdict(
            "False",
            "Paused",
            "the spec (or the release's image) has changed; the change waits for the end of the pause",
        )
    if report.rollout and report.rollout.phase == "Failed":
        return verdict("False", "CanaryFailed", f"revision {target} was rolled back")
    old = sorted(name for name in report.observation.active - {target} if report.observation.of(name).alive)
    if old:
        return verdict("False", "RollingOut", f"pods of {', '.join(old[:5])} are being replaced by revision {target}")
    if report.queued_image:
        message = f"the move to image {report.queued_image} waits until other services have moved"
        return verdict("False", "UpgradeQueued", message)
    if report.observation.of(target).alive < report.wanted:
        return verdict("False", "Starting", f"pods of revision {target} are being made")
    return verdict("True", "UpToDate", f"all pods are of revision {target}")


def _revisions(report: Report) -> list[dict[str, Any]]:
    """Newest first; those with pods before the others if there are more than status may list."""
    observation, weights = report.observation, report.weights or _even_weights(report)
    rollout = report.rollout
    shown = sorted(report.stored, key=lambda one: (one.name not in observation.active, -one.number))[:MAX_REVISIONS]
    entries = []
    for revision in sorted(shown, key=lambda one: (-one.number, one.name)):
        pods = observation.of(revision.name)
        entry = {
            "name": revision.name,
            "weight": weights.get(revision.name, 0),
            "replicas": pods.alive - observation.asleep(revision.name),
            "readyReplicas": pods.ready,
            "image": revision.image[:512],
            "failed": bool(rollout and rollout.phase == "Failed" and rollout.revision == revision.name),
        }
        entries.append(entry)
    return entries


def _even_weights(report: Report) -> dict[str, int]:
    """Without a split, traffic follows the ready pods."""
    ready = {name: report.observation.of(name).ready for name in report.observation.active}
    total = sum(ready.values())
    return {name: round(100 * count / total) for name, count in ready.items()} if total else {}


def _rollout(rollout: RolloutStatus | None) -> dict[str, Any] | None:
    """Without empty texts: an API server of 1.20 takes one for null and refuses the status."""
    if rollout is None:
        return None
    entries = rollout.model_dump(mode="json", exclude_none=True)
    return {key: content for key, content in entries.items() if content != ""}


def _with_standby(scaling: Mapping[str, Any] | None, report: Report) -> dict[str, Any] | None:
    """The autoscaler's view, and how many sleep; of a spec that is refused, what was so stays."""
    if report.service is None:
        return dict(scaling) if scaling else None
    spec = report.service.spec.scaling
    if spec is None or spec.standby is None:
        return {key: content for key, content in scaling.items() if key != "standby"} if scaling else None
    return {**(scaling or {}), "standby": report.observation.asleep()}


def _fetch(observation: Observation) -> dict[str, Any] | None:
    progress = observation.slowest_fetch
    if progress is None:
        return None
    entry: dict[str, Any] = {"phase": progress.phase, "doneBytes": progress.done_bytes}
    if progress.total_bytes is not None:
        entry["totalBytes"] = progress.total_bytes
    return entry


_HTTP_PORT = 80


def _url(platform: Platform) -> str:
    host = f"{platform.router_name}.{platform.namespace}.svc" if platform.namespace else platform.router_name
    port = platform.router_service_port
    return f"http://{host}/v1" if port == _HTTP_PORT else f"http://{host}:{port}/v1"


def _plural(count: int) -> str:
    return f"{count} replica{'' if count == 1 else 's'}"


def problems_text(problems: Iterable[object], limit: int = 1500) -> str:
    """All problems of a spec in one line of bounded length, saying how many did not fit."""
    texts = [str(problem) for problem in problems]
    taken: list[str] = []
    for text in texts:
        if taken and sum(map(len, taken)) + len(text) > limit:
            return "; ".join(taken) + f"; and {len(texts) - len(taken)} more"
        taken.append(text[:limit])
    return "; ".join(taken)
