"""What a service's children and pods say: how many there are of each revision, what is wrong, how far a download is.

Pods are counted themselves, not by their Deployments' status, which lags behind them. This module must not know the spec's wishes
beyond the served name, nor write status.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from quire_contract import names
from quire_contract.startup_report import StartupReport
from quire_operator import pod_state
from quire_operator.decision import FetchProgress, ServiceSnapshot
from quire_operator.findings import (
    Finding,
    diagnose_deployment,
    diagnose_pod,
    diagnose_refusal,
    summarise,
)
from quire_operator.manifests import fetch
from quire_operator.manifests.parts import Manifest
from quire_operator.rollout import RevisionPods
from quire_operator.scaling_objects import is_about_object

DEFAULT_DEADLINE_S = 600
"""Of a Deployment that names none."""


@dataclass(frozen=True, kw_only=True)
class PodView:
    """One pod, and what is to be said about it."""

    pod: Manifest
    finding: Finding | None

    @property
    def revision(self) -> str:
        """Its revision's digest."""
        return pod_state.revision(self.pod)

    @property
    def is_broken(self) -> bool:
        """Alive, but it will not become ready by itself."""
        return pod_state.is_alive(self.pod) and self.finding is not None and self.finding.is_blocking


@dataclass(frozen=True, kw_only=True)
class Observation:
    """All that is read from the children and the pods."""

    pods: tuple[PodView, ...]
    """Every pod of the service."""
    deployments: Mapping[str, Manifest]
    """By revision."""
    refusals: tuple[Finding, ...]
    """What the API server refused, of the operator's or of the Deployments' making."""
    fetches: Mapping[str, FetchProgress]
    """By pod name."""
    now: datetime
    startups: Mapping[str, StartupReport] = field(default_factory=dict)
    """By pod name."""

    @cached_property
    def _by_revision(self) -> dict[str, list[PodView]]:
        found: dict[str, list[PodView]] = {}
        for view in self.pods:
            found.setdefault(view.revision, []).append(view)
        return found

    def of(self, revision: str) -> RevisionPods:
        """The numbers of one revision; zeros if it has neither pods nor a Deployment.

        A pod that does not end on a lost node is not counted as ending: nothing can wait for its devices.
        """
        views = self._by_revision.get(revision, [])
        deployment = self.deployments.get(revision)
        return RevisionPods(
            name=revision,
            desired=int(deployment["spec"].get("replicas", 1)) if deployment else 0,
            alive=sum(pod_state.is_alive(view.pod) for view in views),
            terminating=sum(pod_state.is_terminating(view.pod) and view.finding is None for view in views),
            ready=sum(pod_state.is_ready(view.pod) for view in views),
            broken=sum(view.is_broken for view in views),
        )

    @property
    def active(self) -> frozenset[str]:
        """Revisions that have living pods or a Deployment that wants some."""
        wanting = {name for name, deployment in self.deployments.items() if deployment["spec"].get("replicas", 1)}
        living = {view.revision for view in self.pods if not pod_state.is_finished(view.pod)}
        return frozenset((wanting | living) - {""})

    @property
    def replicas(self) -> int:
        """Living pods that do not sleep."""
        return sum(pod_state.is_alive(view.pod) for view in self.pods) - self.asleep()

    def asleep(self, revision: str | None = None) -> int:
        """Pods that sleep; of one revision, or of all."""
        views = self.pods if revision is None else self._by_revision.get(revision, [])
        return sum(pod_state.is_asleep(view.pod) for view in views)

    @property
    def ready(self) -> int:
        """Pods that serve."""
        return sum(pod_state.is_ready(view.pod) for view in self.pods)

    def serving(self, name: str) -> int:
        """Pods that serve under `name`."""
        return sum(pod_state.is_ready(view.pod) and pod_state.serves(view.pod, name) for view in self.pods)

    def findings(self, *, revision: str | None = None) -> tuple[Finding, ...]:
        """The most important first; of one revision's pods, or of all."""
        views = self.pods if revision is None else self._by_revision.get(revision, [])
        told = [view.finding for view in views if view.finding]
        return summarise([*self.refusals, *told])

    def stuck_since(self, revision: str) -> datetime | None:
        """Since when the oldest pod of the revision that does not serve has existed; None if all serve."""
        views = self._by_revision.get(revision, [])
        waiting = [view.pod for view in views if _comes_up(view.pod)]
        times = [moment for pod in waiting if (moment := pod_state.creation_time(pod))]
        deployment = self.deployments.get(revision)
        if deployment and not waiting and int(deployment["spec"].get("replicas", 1)) > len(views):
            made = pod_state.creation_time(deployment)
            times += [made] if made else []
        return min(times, default=None)

    def deadline(self, revision: str) -> datetime | None:
        """When the revision's rollout counts as stuck, if nothing changes; None if it waits for nothing."""
        since = self.stuck_since(revision)
        if since is None:
            return None
        deployment = self.deployments.get(revision)
        limit_s = (
            deployment["spec"].get("progressDeadlineSeconds", DEFAULT_DEADLINE_S) if deployment else DEFAULT_DEADLINE_S
        )
        return since + timedelta(seconds=int(limit_s))

    def is_stalled(self, revision: str) -> bool:
        """Its pods do not come up: one is broken, or waits for longer than the deadline."""
        deadline = self.deadline(revision)
        return self.of(revision).broken > 0 or (deadline is not None and self.now >= deadline) or bool(self.refusals)

    @property
    def fetching_pods(self) -> tuple[str, ...]:
        """Names of pods whose model fetcher runs now."""
        return tuple(str(view.pod["metadata"]["name"]) for view in self.pods if fetcher(view.pod, running=True))

    @property
    def slowest_fetch(self) -> FetchProgress | None:
        """The pod that has least of its download; None if no pod that fetches has told."""
        told = [self.fetches[name] for name in self.fetching_pods if name in self.fetches]
        return min(told, key=lambda progress: progress.done_bytes, default=None)


def observe(snapshot: ServiceSnapshot) -> Observation:
    """Reads a snapshot."""
    deployments = {
        child["metadata"]["labels"][names.LABEL_REVISION]: child
        for child in snapshot.children
        if child["kind"] == "Deployment" and names.LABEL_REVISION in child["metadata"].get("labels", {})
    }
    views = tuple(_view(pod, snapshot) for pod in snapshot.pods)
    return Observation(
        pods=views,
        deployments=deployments,
        refusals=_refusals(snapshot, deployments.values()),
        fetches=snapshot.fetches,
        now=snapshot.now,
        startups=snapshot.startups,
    )


def fetcher(pod: Manifest, *, running: bool = False) -> pod_state.Container | None:
    """The model fetcher's container of a living pod; None if it has none, or if it should run and does not."""
    if not pod_state.is_alive(pod):
        return None
    found = next((entry for entry in pod_state.containers(pod) if entry.name == fetch.CONTAINER), None)
    return None if found is None or (running and found.running_since is None) else found


def _comes_up(pod: Manifest) -> bool:
    if not pod_state.is_alive(pod) or pod_state.is_ready(pod):
        return False
    return not pod_state.is_asleep(pod) and not pod_state.is_victim(pod)


def _view(pod: Manifest, snapshot: ServiceSnapshot) -> PodView:
    if pod_state.is_asleep(pod):
        return PodView(pod=pod, finding=None)
    progress = snapshot.fetches.get(str(pod["metadata"]["name"]))
    return PodView(pod=pod, finding=diagnose_pod(pod, snapshot.now, progress))


def _refusals(snapshot: ServiceSnapshot, deployments: Iterable[Manifest]) -> tuple[Finding, ...]:
    errors = (problem for problem in snapshot.apply_errors if not is_about_object(problem))
    applies: Sequence[Finding] = [diagnose_refusal(problem) for problem in errors]
    creations = [finding for deployment in deployments if (finding := diagnose_deployment(deployment))]
    return (*applies, *creations)
