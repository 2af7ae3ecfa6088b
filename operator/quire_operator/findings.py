"""What is wrong with a pod, a Deployment or an apply, and what a person can do about it.

A finding's message names the thing, says what is wrong in Kubernetes' own words where it has some, and ends with the fix. Messages
hold nothing that ticks (back-off seconds, restart counts), or every tick would be a write of status. This module must not know
revisions or status; `pod_state` reads pods for it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from quire_operator import pod_state
from quire_operator.api.validation import Problem
from quire_operator.decision import FetchProgress
from quire_operator.manifests import fetch, worker
from quire_operator.manifests.parts import Manifest
from quire_operator.pod_state import Termination

MAX_MESSAGE = 900
ORDER = (
    "OperatorForbidden",
    "AdmissionRefused",
    "PodSecurityRefused",
    "QuotaExceeded",
    "ApplyFailed",
    "FailedCreate",
    "ModelSourceUnauthorized",
    "ModelSourceNotFound",
    "ModelChecksumMismatch",
    "InvalidModel",
    "NoSpace",
    "ModelCacheUnusable",
    "ModelSourceUnreachable",
    "ModelFetchFailed",
    "WorkerCannotStart",
    "OOMKilled",
    "InvalidImageName",
    "ImagePullBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "VolumeClaimMissing",
    "VolumeClaimPending",
    "Unschedulable",
    "CrashLoopBackOff",
    "WorkerFailed",
    "StandbyLost",
    "NodeGone",
    "Evicted",
    "ProgressDeadlineExceeded",
    "NotReady",
    "ContainerCreating",
    "FetchingModel",
    "Loading",
    "Starting",
)
"""Most important first: what nobody but a person can change stands before what may pass by itself."""
HARMLESS = frozenset({"FetchingModel", "Loading", "Starting"})
"""Reasons that are no trouble: a pod on its way."""
_CANNOT_START = 2
"""Exit code of a worker whose flags, model or machine are wrong: another start would end the same way."""
_CREATING_PATIENCE = timedelta(minutes=2)
_GONE_PATIENCE = timedelta(minutes=1)
_OOM_MEMORY = timedelta(minutes=10)
_EVICTION_NEWS = timedelta(hours=1)
_RANDOM_POD = re.compile(r'pods "[^"]+" is forbidden')
"""A ReplicaSet makes up another name at each attempt."""
_PAST_THE_START = frozenset({"downloading", "verifying"})
_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable"})
_FETCH_FIXES = {
    "ModelSourceUnauthorized": "put valid credentials into the Secret that spec.model.secretRef names, and accept the model's "
    "licence if it is gated",
    "ModelSourceNotFound": "correct spec.model.uri or spec.model.revision",
    "ModelSourceUnreachable": "check DNS, the NetworkPolicy's modelCIDRs, proxy and private CA of the release; it is tried again",
    "ModelChecksumMismatch": "the source's files changed or were damaged on the way; pin spec.model.revision, or repair the source",
    "NoSpace": "enlarge the model cache of the release (models.cache.size, models.cache.maxSize)",
    "InvalidModel": "the source must be a model in Hugging Face format with safetensors; correct spec.model.uri",
    "ModelCacheUnusable": "check the model cache's volume: it must be writable for the pods' group",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a person may want to know about the service's pods."""

    reason: str
    """One CamelCase word of ORDER."""
    message: str
    """What is wrong and the fix."""
    is_blocking: bool = False
    """The pod will not become ready by itself, or not soon."""

    @property
    def rank(self) -> int:
        """Lower is more important."""
        return ORDER.index(self.reason)


def diagnose_pod(pod: Manifest, now: datetime, progress: FetchProgress | None) -> Finding | None:
    """The most important thing about one pod; None if it serves and nothing happened to it."""
    if pod_state.is_terminating(pod):
        return _gone(pod, now)
    if pod_state.is_finished(pod):
        return _evicted(pod, now)
    if pod_state.is_ready(pod) or pod_state.is_victim(pod):
        return _recent_oom(pod, now)
    return _lost(pod) or _unscheduled(pod) or _failing_container(pod, progress) or _waiting(pod, now, progress)


def diagnose_deployment(deployment: Manifest) -> Finding | None:
    """Why pods cannot even be created; None if they can, or if none are wanted."""
    if not deployment["spec"].get("replicas"):
        return None
    failure = pod_state.condition(deployment, "ReplicaFailure")
    if failure is None or failure.get("status") != "True":
        return None
    return _refused("pods cannot be created", str(failure.get("message", "")), "FailedCreate")


def diagnose_refusal(problem: Problem) -> Finding:
    """Why the API server refused an object."""
    return _refused(f"{problem.path or 'an object'} was refused", problem.message, "ApplyFailed")


def summarise(findings: list[Finding]) -> tuple[Finding, ...]:
    """One finding per reason, the most important first; further pods with the same reason are counted."""
    by_reason: dict[str, list[Finding]] = {}
    for finding in findings:
        by_reason.setdefault(finding.reason, []).append(finding)
    merged = []
    for same in by_reason.values():
        first = min(same, key=lambda finding: finding.message)
        more = f" (and {len(same) - 1} more like it)" if len(same) > 1 else ""
        merged.append(replace(first, message=_clip(first.message) + more))
    return tuple(sorted(merged, key=lambda finding: finding.rank))


def _refused(what: str, message: str, otherwise: str) -> Finding:
    """The server's words, and whose they are: quota, Pod Security, a webhook, RBAC."""
    message = _RANDOM_POD.sub("pods are forbidden", message)
    folded = message.lower()
    kinds = (
        (
            "exceeded quota",
            "QuotaExceeded",
            "raise the namespace's ResourceQuota, or lower spec.replicas or spec.resources",
        ),
        ("must specify", "QuotaExceeded", "the namespace's ResourceQuota demands limits; set them in spec.resources"),
        (
            "violates podsecurity",
            "PodSecurityRefused",
            "use a model cache other than HostPath, or relabel the namespace",
        ),
        ("limitrange", "AdmissionRefused", "keep spec.resources within the namespace's LimitRange"),
        ("usage per container", "AdmissionRefused", "keep spec.resources within the namespace's LimitRange"),
        ("admission webhook", "AdmissionRefused", "ask who runs that webhook, or change the field that it names"),
        (
            "no priorityclass",
            "AdmissionRefused",
            "create the PriorityClass, or correct spec.podTemplate.priorityClassName",
        ),
        ("runtimeclass", "AdmissionRefused", "create the RuntimeClass, or correct spec.podTemplate.runtimeClassName"),
        (
            "cannot",
            "OperatorForbidden",
            "the operator's Role lacks a right here: install the chart's Role in this namespace",
        ),
    )
    for mark, reason, fix in kinds:
        if mark in folded and (reason != "OperatorForbidden" or "user " in folded):
            return Finding(reason=reason, message=f"{what}: {_clip(message)}; {fix}", is_blocking=True)
    return Finding(reason=otherwise, message=f"{what}: {_clip(message)}; it is tried again", is_blocking=True)


def _gone(pod: Manifest, now: datetime) -> Finding | None:
    """A pod that should have ended: its node does not answer."""
    due = pod_state.deletion_time(pod)
    if due is None or now < due + _GONE_PATIENCE:
        return None
    node = pod["spec"].get("nodeName", "its node")
    fix = f"if node {node} is lost, delete the Node, or kubectl delete pod {_name(pod)} --force"
    return Finding(reason="NodeGone", message=f"pod {_name(pod)} does not end: node {node} does not answer; {fix}")


def _evicted(pod: Manifest, now: datetime) -> Finding | None:
    """Kubernetes keeps such pods for long after another has taken their place; only the last hour's are news."""
    if pod.get("status", {}).get("reason") not in {"Evicted", "NodeLost", "Preempting", "Preempted"}:
        return None
    ends = [container.last_end.at for container in pod_state.containers(pod) if container.last_end]
    when = max([moment for moment in ends if moment], default=pod_state.condition_time(pod, "Ready"))
    if when is not None and now - when > _EVICTION_NEWS:
        return None
    told = str(pod["status"].get("message", "")).strip().rstrip(".")
    fix = "set spec.resources.requests to what the worker needs, or spec.podTemplate.priorityClassName"
    return Finding(reason="Evicted", message=f"pod {_name(pod)} was evicted: {_clip(told)}; {fix}")


def _recent_oom(pod: Manifest, now: datetime) -> Finding | None:
    """A worker that serves again after it was killed for memory will be killed again."""
    for container in pod_state.containers(pod):
        ended = container.last_end
        if ended and ended.reason == "OOMKilled" and ended.at and now - ended.at < _OOM_MEMORY:
            return _out_of_memory(pod, container.name)
    return None


def _lost(pod: Manifest) -> Finding | None:
    why = pod_state.why_lost(pod)
    if why is None:
        return None
    message = f"pod {_name(pod)} sleeps and does not wake: {_clip(why)}; a fresh pod takes its place"
    return Finding(reason="StandbyLost", message=message, is_blocking=True)


def _unscheduled(pod: Manifest) -> Finding | None:
    scheduled = pod_state.condition(pod, "PodScheduled")
    if scheduled is None or scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    told = str(scheduled.get("message", "")).strip().rstrip(".")
    reason, fix = _scheduling_fix(told)
    return Finding(reason=reason, message=f"pod {_name(pod)} fits on no node: {_clip(told)}; {fix}", is_blocking=True)


def _scheduling_fix(told: str) -> tuple[str, str]:
    folded = told.lower()
    if claim := re.search(r'persistentvolumeclaim "([^"]+)" not found', folded):
        return (
            "VolumeClaimMissing",
            f"create PersistentVolumeClaim {claim[1]} in this namespace, or correct spec.model.uri",
        )
    if "unbound immediate persistentvolumeclaims" in folded:
        return "VolumeClaimPending", "its PersistentVolumeClaim is not bound: check its storage class and access mode"
    fixes = []
    lacking = list(dict.fromkeys(re.findall(r"insufficient ([\w./-]+)", folded)))
    for resource in lacking:
        if resource.startswith("nvidia.com/"):
            fixes.append(
                f"no node has enough free {resource}: add GPU nodes or lower spec.replicas; "
                "with no spare devices, spec.rollout.strategy: Recreate rolls out without any"
            )
        else:
            fixes.append(f"no node has enough free {resource}: lower spec.resources.requests.{resource} or add nodes")
    if "selector" in folded or "affinity" in folded:
        fixes.append("check spec.placement.nodeSelector, spec.placement.spot and spec.accelerator.product")
    if "taint" in folded:
        fixes.append("add the taint to spec.placement.tolerations if these nodes are meant")
    if "topology spread" in folded:
        fixes.append("spec.placement.topologySpread allows no node: use whenUnsatisfiable: ScheduleAnyway")
    return "Unschedulable", "; ".join(fixes) or "add nodes"


def _failing_container(pod: Manifest, progress: FetchProgress | None) -> Finding | None:
    """A container that cannot be made, or that ended badly and has not done better since."""
    for container in pod_state.containers(pod):
        if container.running_since and (_was_ready(pod, container) or _fetches_again(container, progress)):
            continue
        found = _cannot_be_made(pod, container) or _ended_badly(pod, container)
        if found is not None:
            return found
    return None


def _was_ready(pod: Manifest, container: pod_state.Container) -> bool:
    """Whether the pod was ready since this container started: Ready is False from before then, so a later change tells."""
    turned, since = pod_state.condition_time(pod, "Ready"), container.running_since
    return turned is not None and since is not None and turned > since + timedelta(seconds=5)


def _fetches_again(container: pod_state.Container, progress: FetchProgress | None) -> bool:
    """Whether a fetcher that failed before has come past the point where it would fail at once."""
    return container.name == fetch.CONTAINER and progress is not None and progress.phase in _PAST_THE_START


def _cannot_be_made(pod: Manifest, container: pod_state.Container) -> Finding | None:
    told, image = _clip(container.waiting_message), container.image
    where = f"pod {_name(pod)}"
    if container.waiting == "InvalidImageName":
        message = f"{where}: {image!r} is no image name; correct spec.engine.image"
        return Finding(reason="InvalidImageName", message=message, is_blocking=True)
    if container.waiting in _IMAGE_REASONS:
        # The kubelet alternates between ErrImagePull and ImagePullBackOff; one reason, or the condition would flap.
        fix = (
            "check spec.engine.image (or the release's image) and spec.podTemplate.imagePullSecrets; "
            f"kubectl describe pod {_name(pod)} says why"
        )
        return Finding(
            reason="ImagePullBackOff", message=f"{where}: image {image!r} cannot be pulled; {fix}", is_blocking=True
        )
    if container.waiting == "CreateContainerConfigError":
        fix = "create the Secret or ConfigMap in this namespace, or correct the name that the spec gives"
        return Finding(
            reason="CreateContainerConfigError",
            message=f"{where}: {told or 'bad configuration'}; {fix}",
            is_blocking=True,
        )
    if container.waiting in {"CreateContainerError", "RunContainerError"}:
        message = (
            f"{where}: container {container.name!r} cannot be started: {told}; check the image and its runtime class"
        )
        return Finding(reason="CreateContainerError", message=message, is_blocking=True)
    return None


def _ended_badly(pod: Manifest, container: pod_state.Container) -> Finding | None:
    ended = container.last_end
    if ended is None or ended.exit_code == 0:
        return None
    is_looping = container.waiting == "CrashLoopBackOff" or container.restarts >= 2
    if container.name == fetch.CONTAINER:
        return _fetch_failed(pod, ended)
    if ended.reason == "OOMKilled":
        return replace(_out_of_memory(pod, container.name), is_blocking=is_looping)
    said = ended.last_line
    if ended.exit_code == _CANNOT_START:
        message = f"pod {_name(pod)}: the worker cannot start: {said or 'no message; see kubectl logs'}"
        return Finding(reason="WorkerCannotStart", message=message, is_blocking=True)
    told = f": {said}" if said else ""
    reason = "CrashLoopBackOff" if is_looping else "WorkerFailed"
    message = f"pod {_name(pod)}: the worker ended with exit code {ended.exit_code}{told}; see kubectl logs {_name(pod)} --previous"
    return Finding(reason=reason, message=message, is_blocking=is_looping)


def _fetch_failed(pod: Manifest, ended: Termination) -> Finding:
    reason = ended.json_reason or "ModelFetchFailed"
    said = ended.json_message or ended.last_line or f"the fetcher ended with exit code {ended.exit_code}"
    if ended.reason == "OOMKilled":
        reason, said = (
            "ModelFetchFailed",
            "the fetcher was killed for memory; raise models.fetchResources.limits.memory of the release",
        )
    if reason not in _FETCH_FIXES:
        reason = "ModelFetchFailed"
    fix = _FETCH_FIXES.get(reason, f"see kubectl logs {_name(pod)} -c {fetch.CONTAINER}")
    message = f"pod {_name(pod)}: the model cannot be fetched: {_clip(said)}; {fix}"
    return Finding(reason=reason, message=message, is_blocking=reason != "ModelSourceUnreachable")


def _fetch_troubled(pod: str, trouble: str) -> Finding:
    """A source that may answer at the next try; it is told at once, or nobody would look at a mistyped address for minutes."""
    reason = "ModelSourceUnreachable"
    message = f"pod {pod}: the model cannot be fetched just now: {_clip(trouble)}; {_FETCH_FIXES[reason]}"
    return Finding(reason=reason, message=message)


def _out_of_memory(pod: Manifest, name: str) -> Finding:
    listed: list[Manifest] = pod["spec"].get("containers", [])
    spec = next((entry for entry in listed if entry["name"] == name), {})
    limit = spec.get("resources", {}).get("limits", {}).get("memory")
    if limit:
        fix = f"its limit is {limit}: raise spec.resources.limits.memory, or lower spec.engine.kvCacheMemory or maxNumSeqs"
    else:
        fix = "its node ran out of memory: set spec.resources.requests.memory, or lower spec.engine.kvCacheMemory"
    return Finding(reason="OOMKilled", message=f"pod {_name(pod)} was killed for using too much memory; {fix}")


def _waiting(pod: Manifest, now: datetime, progress: FetchProgress | None) -> Finding:
    """A pod on its way: what it does now."""
    name, containers = _name(pod), pod_state.containers(pod)
    fetching = next((entry for entry in containers if entry.name == fetch.CONTAINER), None)
    main = next((entry for entry in containers if entry.name == worker.CONTAINER), None)
    if fetching and fetching.running_since:
        if progress and progress.trouble:
            return _fetch_troubled(name, progress.trouble)
        return Finding(reason="FetchingModel", message=f"pod {name}: {describe_progress(progress)}")
    if main and main.running_since:
        if _was_ready(pod, main):
            message = f"pod {name} was ready and is not any more; see kubectl logs {name}"
            return Finding(reason="NotReady", message=message)
        return Finding(reason="Loading", message=f"pod {name}: the worker loads the model")
    placed = pod_state.condition_time(pod, "PodScheduled")
    if placed and now - placed > _CREATING_PATIENCE and not (fetching and fetching.last_end):
        message = (
            f"pod {name} has a node but its containers are not there; a Secret, ConfigMap or volume may be missing: "
            f"kubectl describe pod {name}"
        )
        return Finding(reason="ContainerCreating", message=message)
    return Finding(reason="Starting", message=f"pod {name}: its containers are being made")


def describe_progress(progress: FetchProgress | None) -> str:
    """ "downloading 3.1 of 16.1 GB (19 %)", or whom it waits for."""
    if progress is None:
        return "fetching the model"
    if progress.phase == "resolving":
        return progress.message or "asking the source for the model's files"
    done, total = progress.done_bytes, progress.total_bytes
    unit, scale = ("GB", 1e9) if max(done, total or 0) >= 1e9 else ("MB", 1e6)
    if not total:
        return f"{progress.phase} the model, {done / scale:.1f} {unit} so far"
    return f"{progress.phase} {done / scale:.1f} of {total / scale:.1f} {unit} ({100 * done // total} %)"


def _name(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def _clip(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_MESSAGE else flat[: MAX_MESSAGE - 1] + "…"
