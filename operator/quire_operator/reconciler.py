"""One pass over one resource: snapshot, decision, then what the decision says. The queue calls it and brings failures back.

All choices are `decide_service`'s and `decide_route`'s; this module must not make any of its own.
"""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from quire_contract.kube.client import KubeError
from quire_contract.kube.resources import DEPLOYMENT, INFERENCE_SERVICE, MODEL_ROUTE, TENANT
from quire_contract.telemetry import log_event
from quire_operator.acceptance import accepted_status, decide_route, tenant_status
from quire_operator.api.validation import Problem
from quire_operator.applier import Applier, ServiceGoneError, refusal
from quire_operator.autoscale.cluster import ClusterScaling
from quire_operator.cache import ClusterCache
from quire_operator.decide import decide_service
from quire_operator.decision import Decision, ServiceSnapshot
from quire_operator.drainer import Drainer
from quire_operator.events import EventPoster
from quire_operator.keys import ROUTERS, Key, key_of, service_key
from quire_operator.name_claims import ServiceKey
from quire_operator.observations import Observations
from quire_operator.platform import Platform
from quire_operator.release import Release
from quire_operator.router_shards import ShardEntry, service_entry
from quire_operator.status_writer import StatusWriter
from quire_operator.store import KubeObject
from quire_operator.traffic import PLAIN, Traffic, traffic_of
from quire_operator.upgrade_gate import UpgradeGate
from quire_operator.work_queue import TemporaryError, WorkQueue

logger = logging.getLogger(__name__)

ROUTERS_RETRY_S = (0.5, 1.5)
"""Routers are told again so soon after the API server refused or was away: what waits may be the revocation of a key."""
RESYNC_S = (480.0, 720.0)
"""Every resource is looked at again after so many seconds, whatever was or was not heard of it."""


@dataclass(kw_only=True)
class Writers:
    """Everything that writes to the cluster."""

    applier: Applier
    status: StatusWriter
    events: EventPoster
    release: Release
    drainer: Drainer


@dataclass(kw_only=True)
class _Memory:
    """What one service's last pass left behind. Nothing here outlives the process, and nothing has to."""

    uid: str
    decision: Decision | None = None
    apply_errors: tuple[Problem, ...] = ()
    weights: Mapping[str, int] | None = None
    """How its traffic is split; None: routers hear nothing of it."""
    traffic: Traffic = PLAIN
    """How its requests are treated."""


class Reconciler:
    """Looks at one key at a time; calls for different keys may run at once."""

    def __init__(
        self,
        *,
        cache: ClusterCache,
        queue: WorkQueue[Key],
        writers: Writers,
        observations: Observations,
        scaling: ClusterScaling,
        platform: Platform,
        now: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        """`now` gives UTC; `rng` spreads the resync."""
        self._scaling = scaling
        self._cache = cache
        self._queue = queue
        self._writers = writers
        self._observations = observations
        self._platform = platform
        self._now = now
        self._rng = rng
        self._gate: UpgradeGate[Key] = UpgradeGate(platform.max_concurrent_upgrades, queue.add)
        self._memories: dict[Key, _Memory] = {}
        self._undecided: set[Key] | None = None
        self._known_names: frozenset[tuple[str, str]] = frozenset()

    @property
    def num_apply_errors(self) -> int:
        """Children that the API server refuses now."""
        return sum(len(memory.apply_errors) for memory in self._memories.values())

    def begin(self) -> None:
        """The caches are filled. Routers hear nothing, and no upgrade begins, until each service has been decided once."""
        self._undecided = {key_of(document) for document in self._cache.documents_of(INFERENCE_SERVICE)}
        self._queue.add(ROUTERS)
        self._open_if_all_decided()

    async def reconcile(self, key: Key) -> None:
        """Bring the world nearer to what `key` wants. TemporaryError or KubeError: call again later."""
        if key == ROUTERS:
            await self._reconcile_routers()
            return
        document = self._cache.document(key)
        if document is None or document["metadata"].get("deletionTimestamp"):
            self._forget(key)
            return
        self._queue.add(key, self._rng.uniform(*RESYNC_S))
        if key.kind == INFERENCE_SERVICE.kind:
            await self._reconcile_service(key, document)
        elif key.kind == MODEL_ROUTE.kind:
            await self._reconcile_route(document)
        else:
            await self._reconcile_tenant(document)

    async def _reconcile_service(self, key: Key, document: KubeObject) -> None:
        """Status first: it holds a rollout's state, and whoever goes on after a crash between the two must find where it was."""
        memory = self._memory(key, document)
        decision = self._decide(key, document, memory)
        refused = await self._report(document, decision)
        errors, trouble = await self._act(document, decision)
        if errors != memory.apply_errors:
            memory.apply_errors = errors
            document = self._cache.document(key) or document
            decision = self._decide(key, document, memory)
            refused = await self._report(document, decision)
        if decision.requeue_after_s is not None:
            self._queue.add(key, decision.requeue_after_s)
        if trouble is not None:
            raise trouble
        if errors or refused:
            raise TemporaryError("; ".join(map(str, (*errors, *refused))))

    async def _report(self, document: KubeObject, decision: Decision) -> tuple[Problem, ...]:
        """Status and events. A status that the server refuses (the CRD may be older than we are) keeps no child from its change."""
        refused: tuple[Problem, ...] = ()
        try:
            await self._writers.status.write(INFERENCE_SERVICE, document, decision.status)
        except KubeError as error:
            refused = (refusal("status", error),)
        await self._writers.events.post(document, decision.events)
        return refused

    def _decide(self, key: Key, document: KubeObject, memory: _Memory) -> Decision:
        """No await in here: the gate counts on it."""
        name = (key.namespace, key.name)
        may_upgrade = self._gate.may_upgrade(key)
        self._scaling.follow(key, document)
        snapshot = ServiceSnapshot(
            document=document,
            children=self._cache.children_of(document),
            pods=self._cache.pods_of(document),
            conflicts=self._cache.claims.decided().conflicts.get(name, ()),
            may_upgrade=may_upgrade,
            canary=self._observations.canary(key),
            fetches=self._observations.fetches(key),
            apply_errors=memory.apply_errors,
            now=self._now(),
            scaling=self._scaling.facts(key),
            loads=self._scaling.loads(key),
            empty=self._writers.drainer.empty(key),
            doomed=self._cache.doomed_of(document),
            may_drain=self._writers.drainer.may_mark,
        )
        try:
            decision = decide_service(snapshot, self._platform)
        finally:
            if self._undecided is not None:
                self._undecided.discard(key)
                self._open_if_all_decided()
        memory.decision = decision
        self._gate.decided(key, may_upgrade=may_upgrade, is_upgrading=decision.is_upgrading)
        self._observations.want(key, document, decision)
        self._writers.drainer.want(key, decision.leaving)
        told = self._weights(document, decision), traffic_of(document, memory.traffic)
        if told != (memory.weights, memory.traffic):
            memory.weights, memory.traffic = told
            self._queue.add(ROUTERS)
        return decision

    async def _act(
        self, document: KubeObject, decision: Decision
    ) -> tuple[tuple[Problem, ...], KubeError | TemporaryError | None]:
        """What the server refused, and what kept us from going on: the status is written in either case."""
        if decision.manifests is None:
            return (), None
        try:
            trust = await self._trust(document["metadata"]["namespace"])
            errors = await self._writers.applier.carry_out(document, decision.manifests)
        except ServiceGoneError as gone:
            self._cache.documents.forget(INFERENCE_SERVICE.kind, gone.namespace, gone.name)
            return (), None
        except (KubeError, TemporaryError) as error:
            return self._memories[key_of(document)].apply_errors, error
        return (*trust, *errors), None

    async def _trust(self, namespace: str) -> tuple[Problem, ...]:
        try:
            return await self._writers.release.ensure_trust(namespace)
        except KubeError as error:
            return (refusal(f"Secret/{self._platform.trust_secret}", error),)

    def _weights(self, document: KubeObject, decision: Decision) -> Mapping[str, int] | None:
        """None for a service that never had pods: its names are known to nobody."""
        has_pods = any(child["kind"] == DEPLOYMENT.kind for child in self._cache.children_of(document))
        return None if decision.manifests is None and not has_pods else dict(decision.weights)

    async def _reconcile_route(self, document: KubeObject) -> None:
        _, problems, reason = decide_route(document, self._owners(), self._older_routes(document))
        await self._writers.status.write(
            MODEL_ROUTE, document, accepted_status(document, problems, reason, self._now())
        )
        self._queue.add(ROUTERS)

    async def _reconcile_tenant(self, document: KubeObject) -> None:
        """The status only: routers were told when the cache learnt of the change."""
        meta = document["metadata"]
        decision = self._cache.tenants.decision((meta["namespace"], meta["name"]))
        if decision is None:  # gone meanwhile
            return
        is_home = meta["namespace"] == self._platform.namespace
        known = {name for namespace, name in self._names() if is_home or namespace == meta["namespace"]}
        await self._writers.status.write(TENANT, document, tenant_status(document, decision, known, self._now()))

    async def _reconcile_routers(self) -> None:
        if self._undecided is None or self._undecided:
            raise TemporaryError(f"{len(self._undecided or ())} services are undecided", 0.5)
        self._tell_tenants_of_names()
        try:
            again_s = await self._writers.release.write(self._entries())
        except KubeError as error:
            wait_s = max(self._rng.uniform(*ROUTERS_RETRY_S), min(error.retry_after_s or 0.0, 5.0))
            raise TemporaryError(str(error), wait_s) from None
        self._queue.add(ROUTERS, again_s)

    def _tell_tenants_of_names(self) -> None:
        """Tenants' statuses warn of models that nobody serves: they are looked at again when a name comes or goes."""
        known = self._names()
        if known == self._known_names:
            return
        self._known_names = known
        for (namespace, name), decision in self._cache.tenants.decisions():
            if decision.spec is not None and decision.spec.models:
                self._queue.add(Key(TENANT.kind, namespace, name))

    def _names(self) -> frozenset[tuple[str, str]]:
        """(namespace, name) of what is served, and of routes."""
        routes = (
            (route["metadata"]["namespace"], _route_name(route)) for route in self._cache.documents_of(MODEL_ROUTE)
        )
        return frozenset(((owner[0], name) for name, owner in self._owners().items())) | frozenset(routes)

    def _entries(self) -> list[ShardEntry]:
        """The routers' whole configuration. Each name once: its owner is looked up now, whatever was decided when."""
        owners, older_routes = self._owners(), dict[str, ServiceKey]()
        served: dict[ServiceKey, list[str]] = {}
        for name, owner in owners.items():
            served.setdefault(owner, []).append(name)
        entries = []
        for owner, served_names in served.items():
            memory = self._memories[service_key(*owner)]
            entries.append(service_entry(*owner, served_names, memory.weights or {}, memory.traffic))
        for document in self._cache.documents_of(MODEL_ROUTE):
            meta = document["metadata"]
            route, _, _ = decide_route(document, owners, older_routes)
            older_routes.setdefault(_route_name(document), (meta["namespace"], meta["name"]))
            if route is not None:
                entries.append(ShardEntry(key=f"route:{meta['namespace']}/{meta['name']}", route=route))
        for _, decision in self._cache.tenants.decisions():
            entries.append(ShardEntry(key=f"tenant:{decision.entry.id}", tenant=decision.entry))
        return entries

    def _owners(self) -> Mapping[str, ServiceKey]:
        """Names that routers know, each with its service."""
        known = {(key.namespace, key.name) for key, memory in self._memories.items() if memory.weights is not None}
        return {name: owner for name, owner in self._cache.claims.decided().owners.items() if owner in known}

    def _older_routes(self, document: Mapping[str, Any]) -> dict[str, ServiceKey]:
        found: dict[str, ServiceKey] = {}
        for other in self._cache.documents_of(MODEL_ROUTE):
            if other["metadata"]["uid"] == document["metadata"]["uid"]:
                break
            found.setdefault(_route_name(other), (other["metadata"]["namespace"], other["metadata"]["name"]))
        return found

    def _memory(self, key: Key, document: KubeObject) -> _Memory:
        uid = document["metadata"]["uid"]
        memory = self._memories.get(key)
        if memory is None or memory.uid != uid:
            memory = self._memories[key] = _Memory(uid=uid)
        return memory

    def _forget(self, key: Key) -> None:
        """The garbage collector removes the children; routers must hear at once."""
        memory = self._memories.pop(key, None)
        self._gate.forget(key)
        self._observations.forget(key)
        self._scaling.forget(key)
        self._writers.drainer.forget(key)
        if memory is not None:
            self._writers.status.forget(memory.uid)
            self._cache.forget(memory.uid)
            self._writers.applier.forget(key.namespace, key.name)
            log_event(logger, logging.INFO, "service is gone", key=key)
        if self._undecided is not None:
            self._undecided.discard(key)
            self._open_if_all_decided()
        if key.kind != TENANT.kind:
            self._queue.add(ROUTERS)

    def _open_if_all_decided(self) -> None:
        if self._undecided is not None and not self._undecided:
            self._gate.open()


def _route_name(document: Mapping[str, Any]) -> str:
    """The name that a route claims, as far as it can be read."""
    spec = document.get("spec")
    return str(spec.get("model")) if isinstance(spec, Mapping) else ""
