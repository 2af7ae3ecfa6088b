"""The autoscaler on a cluster: services and pods from the caches, routers by their pods, changes through /scale.

This module decides nothing; it must not know policies' meanings, nor how pods come and go.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from quire_contract import names
from quire_operator import pod_state
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.validation import InvalidResourceError, NotYetSupportedError, parse_service
from quire_operator.autoscale.aggregate import Reading, ScaleState, reading_of
from quire_operator.autoscale.course import Memory, View
from quire_operator.autoscale.listener import DemandListener, RouterAddress
from quire_operator.autoscale.loop import Autoscaler, ScaleError
from quire_operator.autoscale.policy import Policy
from quire_operator.autoscale.policy_of import policy_of
from quire_operator.autoscale.provider import Autoscalers, Provider
from quire_operator.autoscale.report import ScalingFacts, is_news, memory_of
from quire_operator.autoscale.scale_writer import ScaleWriter, replicas_of
from quire_operator.autoscale.signal import WorkerLoad
from quire_operator.cache import ClusterCache
from quire_operator.keda.demand import EdgeHub
from quire_operator.keys import Key, service_key
from quire_operator.metrics import Metrics
from quire_operator.pod_address import address_of
from quire_operator.scaling_objects import choose_provider
from quire_operator.store import KubeObject

_LEAVING = "deletionTimestamp"


@dataclass(kw_only=True)
class ServiceTarget:
    """One InferenceService with spec.scaling."""

    key: Key
    uid: str
    generation: int
    service: InferenceService
    """As its spec of that generation says."""
    provider: Provider
    scaling: "ClusterScaling"
    is_held: bool = False
    """Nothing of it is carried out now: it is paused, or an older service has its name."""

    @property
    def polling_interval_s(self) -> float:
        """Between two looks."""
        scaling = self.service.spec.scaling
        return float(scaling.polling_interval_seconds) if scaling else 5.0

    @property
    def is_writer(self) -> bool:
        """Whether the operator is who writes the replicas."""
        return self.provider.name == "BuiltIn"

    def state(self) -> ScaleState | None:
        """Replicas by the cache."""
        return self.scaling.state(self)

    def policy(self, capacity: int | None) -> Policy:
        """By its spec."""
        del capacity  # `decide` learns it from the signal
        return policy_of(self.service)

    def memory(self) -> Memory:
        """From its status."""
        document = self.scaling.document(self)
        return memory_of((document or {}).get("status"))

    async def scale(self, view: View) -> None:
        """Write /scale. ScaleError if that is not possible now."""
        await self.scaling.write(self, view)


class ClusterScaling:
    """One term of leadership's. The reconciler tells it of services (`follow`, `forget`) and asks it what is to be said (`facts`)."""

    def __init__(
        self,
        *,
        cache: ClusterCache,
        enqueue: Callable[[Key], None],
        token: Callable[[], str | None],
        writer: ScaleWriter,
        metrics: Metrics,
        now: Callable[[], datetime],
        rng: random.Random,
        autoscalers: Callable[[], Autoscalers] = Autoscalers,
    ) -> None:
        """`enqueue` has a service looked at by the reconciler; `token` is the release's, once it is known; `now` gives UTC."""
        self._cache = cache
        self._enqueue = enqueue
        self._writer = writer
        self._metrics = metrics
        self._now = now
        self._autoscalers = autoscalers
        self.scaler = Autoscaler(read=self.reading, wall_clock=lambda: now().timestamp(), on_view=self._seen)
        self.edges = EdgeHub(self.reading)
        self.listener = DemandListener(token=token, on_edge=self._edge, clock=time.monotonic, rng=rng)
        self._targets: dict[Key, ServiceTarget] = {}
        self._told: dict[Key, View] = {}

    async def run(self) -> None:
        """Listen and scale until cancelled."""
        self.routers_changed()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.listener.run())
            group.create_task(self.scaler.run())

    def routers_changed(self) -> None:
        """The routers' pods are other ones, or elsewhere."""
        routers = {}
        for pod in self._cache.routers.all():
            address = address_of(pod)
            if address and pod_state.is_running(pod):
                url = f"http://{address}:{names.PORT_ROUTER}"
                leaving = pod_state.is_terminating(pod)
                routers[str(pod["metadata"]["name"])] = RouterAddress(url=url, is_leaving=leaving)
        self.listener.set_routers(routers)

    def reading(self, service: str) -> Reading:
        """The demand of "namespace/name" now."""
        return reading_of(service, self.listener.states())

    def follow(self, key: Key, document: KubeObject) -> None:
        """Begin with a service, or go on with it as its document says now. One whose spec is refused is left as it is."""
        meta = document["metadata"]
        target = self._targets.get(key)
        self._note_held(target, document)
        is_same = target is not None and (target.uid, target.generation) == (meta["uid"], meta.get("generation", 0))
        if is_same and target is not None and target.provider == self._provider(target.service, document):
            return
        service = _parsed(document)
        provider = None if service is None else self._provider(service, document)
        if service is None or provider is None:
            self.forget(key)
            return
        if target is None or target.uid != meta["uid"]:
            self.forget(key)
            target = ServiceTarget(
                key=key,
                uid=meta["uid"],
                generation=0,
                service=service,
                provider=provider,
                scaling=self,
                is_held=self._is_held(document),
            )
            self._targets[key] = target
        target.generation, target.service, target.provider = int(meta.get("generation", 0)), service, provider
        self.scaler.put(_name(key), target)
        self.scaler.wake(_name(key))

    def forget(self, key: Key) -> None:
        """The service is gone, or scales no more."""
        if self._targets.pop(key, None) is not None:
            self._told.pop(key, None)
            self.scaler.drop(_name(key))
            self._metrics.forget_service(_name(key))

    def facts(self, key: Key) -> ScalingFacts | None:
        """What is to be said of a service; None: it does not scale."""
        target = self._targets.get(key)
        if target is None:
            return None
        view = self._told.get(key)
        capacity = view.demand.capacity if view is not None and view.demand is not None else None
        return ScalingFacts(provider=target.provider, view=view, autoscalers=self._autoscalers(), capacity=capacity)

    def loads(self, key: Key) -> Mapping[str, WorkerLoad]:
        """Of its workers, by pod, as routers say now."""
        demand = self.reading(_name(key)).demand
        return {} if demand is None else demand.workers

    def document(self, target: ServiceTarget) -> KubeObject | None:
        """The service as it is known; None: it is gone, or another one of that name."""
        document = self._cache.document(target.key)
        if document is None or document["metadata"]["uid"] != target.uid or document["metadata"].get(_LEAVING):
            return None
        return document

    def state(self, target: ServiceTarget) -> ScaleState | None:
        """Replicas by the caches; None while nothing may be scaled."""
        document = self.document(target)
        if document is None or self._is_held(document):
            return None
        replicas = replicas_of(document)
        lost = self._cache.doomed_of(document)
        ready = sum(
            pod_state.is_ready(pod) and not pod_state.is_victim(pod) and pod["metadata"]["name"] not in lost
            for pod in self._cache.pods_of(document)
        )
        created = pod_state.creation_time(document)
        return ScaleState(
            replicas=replicas,
            ready=min(ready, replicas),
            loading=max(0, replicas - ready),
            created_s=created.timestamp() if created else 0.0,
            is_forced_active=_is_true(document, names.ANNOTATION_FORCE_ACTIVATION),
        )

    async def write(self, target: ServiceTarget, view: View) -> None:
        """Have /scale written."""
        document = self.document(target)
        if document is None:
            raise ScaleError("the service is gone")
        await self._writer.write(document, view)

    def _seen(self, service: str, view: View) -> None:
        namespace, _, name = service.partition("/")
        key = service_key(namespace, name)
        if key not in self._targets:
            return
        self._metrics.show_scaling(
            service,
            demand=None if view.demand is None else view.demand.total,
            age_s=view.age_s,
            desired=view.verdict.replicas,
        )
        if is_news(self._told.get(key), view):
            self._told[key] = view
            self._enqueue(key)

    def _is_held(self, document: KubeObject) -> bool:
        """Its pods stay as they are, whatever /scale says: a number would only lie in wait for the moment when that is over."""
        name = (document["metadata"]["namespace"], document["metadata"]["name"])
        return _is_true(document, names.ANNOTATION_PAUSED) or name in self._cache.claims.decided().conflicts

    def _note_held(self, target: ServiceTarget | None, document: KubeObject) -> None:
        """Neither a pause nor another service's name changes the spec, so nothing else has it looked at when they are over."""
        if target is None or target.is_held == self._is_held(document):
            return
        target.is_held = not target.is_held
        self._told.pop(target.key, None)
        self.scaler.wake(_name(target.key))

    def _edge(self, service: str) -> None:
        self.scaler.wake(service)
        self.edges.tell(service)

    def _provider(self, service: InferenceService, document: KubeObject) -> Provider | None:
        return choose_provider(service, self._autoscalers(), self._cache.children_of(document), self._now())


def _parsed(document: KubeObject) -> InferenceService | None:
    """None for a spec that is refused: Accepted says why."""
    try:
        return parse_service(dict(document))
    except (InvalidResourceError, NotYetSupportedError):
        return None


def _is_true(document: Mapping[str, Any], annotation: str) -> bool:
    return str((document["metadata"].get("annotations") or {}).get(annotation, "")).lower() == "true"


def _name(key: Key) -> str:
    return f"{key.namespace}/{key.name}"
