"""A cluster small enough to decide about: children as they were applied, pods as Deployments ask for them, a clock that is set."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from quire_operator.api.status import InferenceServiceStatus
from quire_operator.api.validation import Problem
from quire_operator.decide import decide_service
from quire_operator.decision import CanaryObservation, Decision, FetchProgress, RevisionCounts, ServiceSnapshot
from quire_operator.platform import Platform
from quire_operator.timestamps import format_time

Manifest = dict[str, Any]
START = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
REVISION = "quire.dev/revision"


def waiting(reason: str, message: str = "") -> Manifest:
    """A container's state."""
    return {"waiting": {"reason": reason, "message": message}}


def ended(exit_code: int, message: str = "", reason: str = "Error", at: datetime = START) -> Manifest:
    """A container's state."""
    return {"terminated": {"exitCode": exit_code, "reason": reason, "message": message, "finishedAt": format_time(at)}}


def running(since: datetime = START) -> Manifest:
    """A container's state."""
    return {"running": {"startedAt": format_time(since)}}


@dataclass
class World:
    """One service in its cluster. `look` decides and carries out; pods become ready only when told."""

    document: Manifest
    platform: Platform = field(default_factory=lambda: Platform(namespace="serving"))
    now: datetime = START
    children: list[Manifest] = field(default_factory=list)
    pods: list[Manifest] = field(default_factory=list)
    conflicts: tuple[Problem, ...] = ()
    apply_errors: tuple[Problem, ...] = ()
    may_upgrade: bool = True
    canary: CanaryObservation | None = None
    fetches: dict[str, FetchProgress] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    made: int = 0

    @property
    def snapshot(self) -> ServiceSnapshot:
        return ServiceSnapshot(
            document=copy.deepcopy(self.document),
            children=tuple(copy.deepcopy(self.children)),
            pods=tuple(copy.deepcopy(self.pods)),
            conflicts=self.conflicts,
            may_upgrade=self.may_upgrade,
            canary=self.canary,
            fetches=dict(self.fetches),
            apply_errors=self.apply_errors,
            now=self.now,
        )

    def look(self, *, doomed: Mapping[str, str] | None = None, empty: frozenset[str] = frozenset()) -> Decision:
        """One decision, carried out. `doomed`: pods whose node is about to be lost, and why; `empty`: those that have drained."""
        snapshot = replace(self.snapshot, doomed=doomed or {}, empty=empty)
        decision = decide_service(snapshot, self.platform)
        status = json.loads(json.dumps(decision.status))
        InferenceServiceStatus.model_validate_json(json.dumps(status))
        self.document["status"] = status
        self.events += [(event.type, event.reason) for event in decision.events]
        if decision.manifests is not None:
            self._apply([copy.deepcopy(manifest) for manifest in decision.manifests])
        return decision

    def settle(self, rounds: int = 30) -> Decision:
        """Every pod becomes ready, until nothing changes any more."""
        for _ in range(rounds):
            before = json.dumps([self.children, self.document, self.pods], sort_keys=True)
            decision = self.look()
            self.make_ready()
            if json.dumps([self.children, self.document, self.pods], sort_keys=True) == before:
                return decision
        raise AssertionError("does not settle")

    def change(self, spec: str) -> None:
        """The user applies other fields."""
        self.document["spec"].update(yaml.safe_load(spec))
        self.document["metadata"]["generation"] += 1

    def replace_spec(self, spec: str) -> None:
        """The user applies another spec."""
        self.document["spec"] = yaml.safe_load(spec)
        self.document["metadata"]["generation"] += 1

    def make_ready(self, revision: str | None = None) -> None:
        """Pods that were not ready (of one revision, or of all) become so."""
        for pod in self.pods:
            if revision in {None, pod["metadata"]["labels"][REVISION]} and not pod["status"].get("stuck"):
                set_ready(pod, self.now)

    def counted(self, requests: int, errors: int, *, stable: tuple[int, int] = (1000, 0)) -> None:
        """What routers tell of the present step, from its beginning."""
        rollout = self.status["rollout"]
        revisions = {
            rollout["stable"]: RevisionCounts(requests=stable[0], errors=stable[1]),
            rollout["revision"]: RevisionCounts(requests=requests, errors=errors),
        }
        self.canary = CanaryObservation(since=datetime.fromisoformat(rollout["stepStartedAt"]), revisions=revisions)

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += timedelta(seconds=seconds)

    @property
    def status(self) -> Manifest:
        found: Manifest = self.document["status"]
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason."""
        (found,) = (entry for entry in self.status["conditions"] if entry["type"] == kind)
        return found["status"], found["reason"]

    def message(self, kind: str) -> str:
        (found,) = (entry for entry in self.status["conditions"] if entry["type"] == kind)
        return str(found["message"])

    def of_kind(self, kind: str) -> list[Manifest]:
        return [child for child in self.children if child["kind"] == kind]

    def replicas(self) -> dict[str, int]:
        """What each Deployment was asked for, by revision."""
        return {
            child["metadata"]["labels"][REVISION]: child["spec"]["replicas"] for child in self.of_kind("Deployment")
        }

    def count(self, *, ready: bool = False) -> dict[str, int]:
        """Pods, by revision."""
        counted: dict[str, int] = {}
        for pod in self.pods:
            name = pod["metadata"]["labels"][REVISION]
            counted[name] = counted.get(name, 0) + (not ready or is_ready(pod))
        return counted

    @property
    def ready(self) -> int:
        return sum(map(is_ready, self.pods))

    def _apply(self, manifests: list[Manifest]) -> None:
        """What a machine does: keeps what the API server added, refuses a change of stored data, prunes."""
        live = {(child["kind"], child["metadata"]["name"]): child for child in self.children}
        for manifest in manifests:
            old = live.get((manifest["kind"], manifest["metadata"]["name"]))
            manifest["metadata"]["creationTimestamp"] = (
                old["metadata"]["creationTimestamp"] if old else format_time(self.now)
            )
            if old and "status" in old:
                manifest["status"] = old["status"]
            if old and manifest["kind"] == "ControllerRevision":
                assert manifest["data"] == old["data"], "data is immutable"
            if old and manifest["kind"] == "Deployment":
                assert manifest["spec"]["template"] == old["spec"]["template"], "a template was rendered anew"
        self.children = json.loads(json.dumps(manifests))
        self._make_pods()

    def _make_pods(self) -> None:
        wanted = self.replicas()
        templates = {
            child["metadata"]["labels"][REVISION]: child["spec"]["template"] for child in self.of_kind("Deployment")
        }
        kept: list[Manifest] = []
        for name in {pod["metadata"]["labels"][REVISION] for pod in self.pods} | set(wanted):
            mine = [pod for pod in self.pods if pod["metadata"]["labels"][REVISION] == name]
            mine.sort(key=lambda pod: (not is_ready(pod), pod["metadata"]["name"]))
            count = wanted.get(name, 0)
            kept += mine[:count]
            kept += [self._pod(templates[name], name) for _ in range(count - len(mine))]
        self.pods = sorted(kept, key=lambda pod: pod["metadata"]["name"])

    def _pod(self, template: Manifest, revision: str) -> Manifest:
        self.made += 1
        pod: Manifest = copy.deepcopy(template)
        pod["metadata"] |= {"name": f"pod-{revision}-{self.made:03}", "creationTimestamp": format_time(self.now)}
        pod["status"] = {
            "phase": "Pending",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": format_time(self.now)},
                {"type": "Ready", "status": "False", "lastTransitionTime": format_time(self.now)},
            ],
        }
        return pod


def is_ready(pod: Manifest) -> bool:
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in pod["status"].get("conditions", ()))


def set_ready(pod: Manifest, now: datetime) -> None:
    """The worker serves."""
    if not is_ready(pod):
        pod["status"]["phase"] = "Running"
        pod["status"]["conditions"] = [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": format_time(now)},
            {"type": "Ready", "status": "True", "lastTransitionTime": format_time(now)},
        ]


def set_container(
    pod: Manifest, name: str, state: Manifest, *, last: Manifest | None = None, restarts: int = 0
) -> None:
    """The kubelet reports a container; the fetcher is an init container."""
    key = "initContainerStatuses" if name == "fetch" else "containerStatuses"
    entry = {"name": name, "state": state, "lastState": last or {}, "restartCount": restarts}
    pod["status"].setdefault(key, []).append(entry)


def unschedulable(pod: Manifest, message: str, now: datetime = START) -> None:
    """The scheduler finds no node."""
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    pod["status"]["conditions"] = [{**scheduled, "lastTransitionTime": format_time(now)}]


MakeDocument = Callable[..., Manifest]


def make_world(document: MakeDocument, spec: str = "", **settings: Any) -> World:
    """A world with one service that the operator has not seen yet."""
    made = document(spec)
    made["metadata"] |= {"namespace": "serving", "uid": "u-1", "generation": 1}
    return replace(World(document=made), **settings)
