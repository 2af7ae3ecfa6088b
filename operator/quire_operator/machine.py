"""The operator while it leads: fills the caches, watches, works the queue, until it is cancelled.

This module builds nothing that decides; it must not know leases or flags.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from quire_contract import names
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.reflector import Reflector
from quire_contract.kube.resources import (
    CONFIG_MAP,
    INFERENCE_SERVICE,
    NODE,
    PDB_V1,
    PDB_V1BETA1,
    POD,
    ResourceKind,
)
from quire_contract.telemetry import log_event
from quire_operator.applier import Applier
from quire_operator.autoscale.cluster import ClusterScaling
from quire_operator.autoscale.scale_writer import ScaleWriter
from quire_operator.autoscaler_watch import POLL_S, AutoscalerWatch, tell_news
from quire_operator.cache import OWN_KINDS, ClusterCache
from quire_operator.child_kinds import watched_kinds
from quire_operator.drainer import Drainer
from quire_operator.events import EventPoster
from quire_operator.handlers import Listener
from quire_operator.keda.service import KedaSettings, serve_keda
from quire_operator.keys import ROUTERS, Key, key_of
from quire_operator.manifests.parts import MANAGER
from quire_operator.metrics import Metrics
from quire_operator.node_doom import trim_node
from quire_operator.observations import Observations
from quire_operator.platform import Platform
from quire_operator.reconciler import Reconciler, Writers
from quire_operator.release import Release
from quire_operator.router_shards import RouterOwner, RouterShards
from quire_operator.sleeper import Sleeper
from quire_operator.status_writer import StatusWriter
from quire_operator.store import ObjectStore
from quire_operator.trimming import trim_autoscaler, trim_object, trim_pod
from quire_operator.trust_secret import TrustSecrets
from quire_operator.work_queue import WorkQueue, work

logger = logging.getLogger(__name__)

_NUM_WORKERS = 8
_RELIST_S = (480.0, 720.0)
_WAIT_FOR_SERVER_S = 2.0
_MANAGED = f"{names.LABEL_MANAGED_BY}={MANAGER}"


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Where the operator looks."""

    namespaces: tuple[str, ...]
    """Namespaces of services; empty: all."""

    @property
    def watched(self) -> tuple[str | None, ...]:
        """As a reflector takes them."""
        return self.namespaces or (None,)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What runs beside the reconciler."""

    observations: Observations
    scaling: ClusterScaling
    drainer: Drainer
    sleeper: Sleeper


class Machine:
    """One term of leadership."""

    def __init__(
        self,
        client: KubeClient,
        *,
        platform: Platform,
        scope: Scope,
        metrics: Metrics,
        watch_documents: Callable[[Listener], Coroutine[Any, Any, None]],
        rng: random.Random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        keda: KedaSettings | None = None,
    ) -> None:
        """The platform has a namespace. `watch_documents` tells its listener of our own kinds, for ever. Without `keda`, KEDA is served
        nothing, and the platform names no scaler."""
        self._keda = keda
        self._client = client
        self._platform = platform
        self._scope = scope
        self._metrics = metrics
        self._watch_documents = watch_documents
        self._rng = rng
        self._now = now
        self._queue: WorkQueue[Key] = WorkQueue(rng, urgent=(ROUTERS,))
        self._cache = ClusterCache(self._queue.add, platform.namespace)
        self._working = asyncio.Event()

    @property
    def working(self) -> asyncio.Event:
        """Set once the caches are filled and the queue is worked."""
        return self._working

    async def run(self) -> None:
        """Until cancelled, or something in here fails that must not."""
        platform = replace(self._platform, pod_disruption_budget_api=(await self._disruption_budgets()).api_version)
        await self._until_served()
        autoscalers = self._autoscalers(platform)
        reconciler, parts = self._build(platform, autoscalers)
        self._export(reconciler)
        async with asyncio.TaskGroup() as group:
            reflectors = self._reflectors(platform)
            for reflector in reflectors:
                group.create_task(reflector.run())
            for reflector in reflectors:
                await reflector.synced.wait()
            await self._retrying(self._list_documents)
            group.create_task(autoscalers.run())
            await autoscalers.looked.wait()
            reconciler.begin()
            for _ in range(_NUM_WORKERS):
                group.create_task(work(self._queue, self._timed(reconciler), self._count))
            for one in (parts.observations, parts.scaling, parts.drainer, parts.sleeper):
                group.create_task(one.run())
            if self._keda is not None:
                group.create_task(serve_keda(self._client, parts.scaling.edges, self._keda))
            group.create_task(self._relist())
            group.create_task(self._follow_nodes())
            group.create_task(self._watch_documents(self._cache.handle))
            self._working.set()
            log_event(logger, logging.INFO, "watching", namespaces=",".join(self._scope.namespaces) or "all")

    def _build(self, platform: Platform, autoscalers: AutoscalerWatch) -> tuple[Reconciler, _Parts]:
        client, cache, metrics = self._client, self._cache, self._metrics
        trust = TrustSecrets(client, platform)
        release = Release(
            cache=cache,
            shards=RouterShards(client, cache.shards, platform, metrics),
            trust=trust,
            owner=RouterOwner(client, platform, time.monotonic),
            platform=platform,
        )
        events = EventPoster(client)
        drainer = Drainer(client, cache=cache, enqueue=self._queue.add, token=trust.token, now=self._now)
        sleeper = Sleeper(client, cache=cache, enqueue=self._queue.add, token=trust.token, now=self._now)
        writers = Writers(
            applier=Applier(client, cache.children, metrics),
            status=StatusWriter(client, cache.documents),
            events=events,
            release=release,
            drainer=drainer,
            sleeper=sleeper,
        )
        scaling = ClusterScaling(
            cache=cache,
            enqueue=self._queue.add,
            token=trust.token,
            writer=ScaleWriter(client, cache.documents, events, metrics),
            metrics=metrics,
            now=self._now,
            rng=self._rng,
            autoscalers=lambda: autoscalers.found,
        )
        cache.on_routers = scaling.routers_changed
        observations = Observations(cache=cache, enqueue=self._queue.add, token=trust.token, now=self._now)
        reconciler = Reconciler(
            cache=cache,
            queue=self._queue,
            writers=writers,
            observations=observations,
            scaling=scaling,
            platform=platform,
            now=self._now,
            rng=self._rng,
        )
        return reconciler, _Parts(observations=observations, scaling=scaling, drainer=drainer, sleeper=sleeper)

    def _autoscalers(self, platform: Platform) -> AutoscalerWatch:
        store = self._cache.children

        def make_reflector(kind: ResourceKind, namespace: str | None) -> Reflector:
            return Reflector(
                self._client,
                kind,
                namespace=namespace,
                label_selector=_MANAGED,
                on_replace=lambda items: store.replace(kind.kind, namespace, items),
                on_event=tell_news(store),
                rng=self._rng,
                transform=trim_autoscaler,
            )

        return AutoscalerWatch(
            self._client,
            make_reflector=make_reflector,
            store=store,
            namespaces=self._scope.watched,
            on_change=self._look_at_services,
            serves_keda=platform.keda is not None and self._keda is not None,
            poll_s=self._keda.look_s if self._keda is not None else POLL_S,
        )

    def _look_at_services(self) -> None:
        for document in self._cache.documents_of(INFERENCE_SERVICE):
            self._queue.add(key_of(document))

    def _reflectors(self, platform: Platform) -> list[Reflector]:
        budgets = PDB_V1 if platform.pod_disruption_budget_api == PDB_V1.api_version else PDB_V1BETA1
        found = []
        for namespace in self._scope.watched:
            for kind in watched_kinds(budgets):
                found.append(self._reflector(kind, namespace, _MANAGED, self._cache.children))
            found.append(self._reflector(POD, namespace, _MANAGED, self._cache.pods))
        own = platform.namespace
        shards = f"{names.LABEL_ROUTER_CONFIG}={platform.release}"
        found.append(self._reflector(CONFIG_MAP, own, shards, self._cache.shards))
        routers = f"{names.LABEL_ROLE}={names.ROLE_ROUTER},{names.LABEL_INSTANCE}={platform.release}"
        found.append(self._reflector(POD, own, routers, self._cache.routers))
        return found

    def _reflector(self, kind: ResourceKind, namespace: str | None, selector: str, store: ObjectStore) -> Reflector:
        return Reflector(
            self._client,
            kind,
            namespace=namespace,
            label_selector=selector,
            on_replace=lambda items: store.replace(kind.kind, namespace, items),
            on_event=store.handle,
            rng=self._rng,
            transform=trim_pod if kind is POD else trim_object,
        )

    async def _follow_nodes(self) -> None:
        """Where the release may not see nodes, pods on one that is about to be lost drain when they are told to end, and no sooner."""

        async def may_list() -> bool:
            try:
                async with contextlib.aclosing(self._client.list_pages(NODE, None, limit=1)) as pages:
                    await anext(pages)
            except KubeError as error:
                if error.status != 403:
                    raise
                return False
            return True

        if not await self._retrying(may_list):
            log_event(
                logger,
                logging.INFO,
                "nodes are not watched: nothing is known of spot interruptions before pods are told to end",
                fix="install cluster-wide, or bind a ClusterRole with get, list and watch on nodes",
            )
            return
        book = self._cache.nodes
        await Reflector(
            self._client,
            NODE,
            namespace=None,
            on_replace=book.replace,
            on_event=book.handle,
            rng=self._rng,
            transform=trim_node,
        ).run()

    async def _disruption_budgets(self) -> ResourceKind:
        served = await self._retrying(lambda: self._client.serves(PDB_V1))
        return PDB_V1 if served else PDB_V1BETA1

    async def _until_served(self) -> None:
        """Kopf looks once which kinds there are, so they must be there before it starts."""
        while missing := await self._retrying(self._missing_kinds):
            log_event(
                logger, logging.WARNING, "CRDs are missing; install the quire-crds chart", kinds=",".join(missing)
            )
            await asyncio.sleep(_WAIT_FOR_SERVER_S)

    async def _missing_kinds(self) -> list[str]:
        return [kind.plural for kind in OWN_KINDS if not await self._client.serves(kind)]

    async def _list_documents(self) -> None:
        for kind in OWN_KINDS:
            for namespace in self._scope.watched:
                items, version = await self._client.list(kind, namespace)
                self._cache.replace_documents(kind, namespace, items, version)

    async def _relist(self) -> None:
        """Kopf never learns of what was deleted while its watch was interrupted for long; a list tells."""
        while True:
            await asyncio.sleep(self._rng.uniform(*_RELIST_S))
            await self._retrying(self._list_documents)

    async def _retrying(self, attempt: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        while True:
            try:
                return await attempt()
            except KubeError as error:
                log_event(
                    logger, logging.WARNING, "API request failed", reason=str(error), retry_in_s=_WAIT_FOR_SERVER_S
                )
                await asyncio.sleep(_WAIT_FOR_SERVER_S)

    def _timed(self, reconciler: Reconciler) -> Callable[[Key], Coroutine[Any, Any, None]]:
        async def reconcile(key: Key) -> None:
            with self._metrics.reconcile_seconds.labels(key.kind).time():
                await reconciler.reconcile(key)

        return reconcile

    def _count(self, result: str) -> None:
        self._metrics.reconciles.labels(result).inc()

    def _export(self, reconciler: Reconciler) -> None:
        self._metrics.queue_depth.set_function(lambda: len(self._queue))
        self._metrics.apply_errors.set_function(lambda: reconciler.num_apply_errors)
        self._metrics.services.labels("true").set_function(lambda: self._cache.num_services(is_ready=True))
        self._metrics.services.labels("false").set_function(lambda: self._cache.num_services(is_ready=False))
