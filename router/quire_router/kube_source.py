"""The configuration of a router on a cluster: follows the operator's shards and the workers' pods through the API server.

Nothing is applied before everything was listed once; while the API server is away, the last known configuration holds. A namespace that
cannot be read while others can (it was deleted with its permissions) does not keep the rest from being served. Changes that come together
are applied together. What the objects mean is `worker_pods`'s, how they are followed the Reflector's.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire_contract import names
from quire_contract.kube.client import KubeClient
from quire_contract.kube.reflector import Reflector
from quire_contract.kube.resources import CONFIG_MAP, POD, ResourceKind
from quire_contract.router_config import SHARD_KEY, RouterConfig, RouterConfigError, decode_config
from quire_contract.telemetry import log_event
from quire_router.keeper import EndpointKeeper
from quire_router.worker_pods import WorkerPod, desired_config, key_of, read_pod

log = logging.getLogger("quire_router.kube")

DEBOUNCE_S = 0.05
"""Changes within this time are applied at once: a rollout touches many pods, the operator several shards."""
RESTART_S = 1.0
PATIENCE_S = 10.0
"""How long the first configuration waits for a namespace after another one was read."""
ALL_NAMESPACES = "*"
WORKER_SELECTOR = f"{names.LABEL_MANAGED_BY}=quire-operator,{names.LABEL_ROLE}={names.ROLE_WORKER}"
_DELETED = "DELETED"

Document = dict[str, Any]
Key = tuple[str, str]


class Shards:
    """The operator's ConfigMaps. One that cannot be used keeps its last good content."""

    def __init__(self, check: Callable[[RouterConfig, str], None] | None = None) -> None:
        """`check` raises RouterConfigError for what the contract cannot tell."""
        self._check = check
        self._shards: dict[Key, RouterConfig] = {}
        self._refused: dict[Key, str] = {}

    @property
    def ordered(self) -> list[RouterConfig]:
        """By number: `<release>-router-config-<n>`."""
        return [self._shards[key] for key in sorted(self._shards, key=lambda key: (len(key[1]), key))]

    def replace(self, documents: Sequence[Document]) -> None:
        """These are all there are."""
        for key in self._shards.keys() - {key_of(document) for document in documents}:
            self._drop(key)
        for document in documents:
            self._take(document)

    def change(self, event: str, document: Document) -> None:
        """One came, changed or went."""
        if event == _DELETED:
            self._drop(key_of(document))
        else:
            self._take(document)

    def _drop(self, key: Key) -> None:
        self._shards.pop(key, None)
        self._refused.pop(key, None)

    def _take(self, document: Document) -> None:
        key = key_of(document)
        content = (document.get("data") or {}).get(SHARD_KEY) or ""
        try:
            source = f"ConfigMap {key[0]}/{key[1]}, {SHARD_KEY}"
            config = decode_config(content.encode(), source)
            if self._check is not None:
                self._check(config, source)
            self._shards[key] = config
            self._refused.pop(key, None)
        except RouterConfigError as error:
            if self._refused.get(key) != str(error):
                log_event(log, logging.ERROR, "configuration_refused", kept="its last good one", problem=str(error))
            self._refused[key] = str(error)


class Pods:
    """The workers' pods in one namespace, or in all."""

    def __init__(self) -> None:
        self._pods: dict[Key, WorkerPod] = {}

    @property
    def known(self) -> list[WorkerPod]:
        """All of them."""
        return list(self._pods.values())

    def replace(self, documents: Sequence[Document]) -> None:
        """These are all there are."""
        self._pods = {key_of(document): read_pod(document) for document in documents}

    def change(self, event: str, document: Document) -> None:
        """One came, changed or went."""
        if event == _DELETED:
            self._pods.pop(key_of(document), None)
        else:
            self._pods[key_of(document)] = read_pod(document)


class KubernetesSource:
    """Applies what the API server says until cancelled. `namespaces` are those whose workers are served; ALL_NAMESPACES: every one."""

    def __init__(
        self,
        client: KubeClient,
        keeper: EndpointKeeper,
        *,
        release: str,
        home: str,
        namespaces: Sequence[str],
        rng: random.Random,
        patience_s: float = PATIENCE_S,
        check: Callable[[RouterConfig, str], None] | None = None,
    ) -> None:
        """`check` raises RouterConfigError for what the contract cannot tell of a shard."""
        self._client = client
        self._keeper = keeper
        self._home = home
        self._rng = rng
        self._patience_s = patience_s
        self._changed = asyncio.Event()
        self._applied: RouterConfig | None = None
        self._shards = Shards(check)
        scopes = [None] if ALL_NAMESPACES in namespaces else list(dict.fromkeys(namespaces))
        self._pods: Mapping[str | None, Pods] = {scope: Pods() for scope in scopes}
        selector = f"{names.LABEL_ROUTER_CONFIG}={release}"
        self._shard_reflector = self._reflector(CONFIG_MAP, home, selector, self._shards)
        self._pod_reflectors = {
            scope: self._reflector(POD, scope, WORKER_SELECTOR, pods) for scope, pods in self._pods.items()
        }

    @property
    def last_contact_s(self) -> float:
        """The event loop's time when the API server was last heard about whatever has been silent the longest; minus infinity if never."""
        return min(reflector.last_contact_s for reflector in self._reflectors())

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self._reflectors():
                tasks.create_task(self._follow(reflector))
            tasks.create_task(self._apply_changes())

    def _reflectors(self) -> list[Reflector]:
        return [self._shard_reflector, *self._pod_reflectors.values()]

    def _reflector(self, kind: ResourceKind, namespace: str | None, selector: str, cache: Shards | Pods) -> Reflector:
        def replace(documents: list[Document]) -> None:
            cache.replace(documents)
            self._changed.set()

        def change(event: str, document: Document) -> None:
            cache.change(event, document)
            self._changed.set()

        return Reflector(
            self._client,
            kind,
            namespace=namespace,
            label_selector=selector,
            on_replace=replace,
            on_event=change,
            rng=self._rng,
        )

    async def _follow(self, reflector: Reflector) -> None:
        while True:
            try:
                await reflector.run()
            except Exception:  # a loop that must live: without it the router would serve what it knows now for ever
                log.exception("following the cluster failed; it starts anew")
            await asyncio.sleep(RESTART_S)

    async def _apply_changes(self) -> None:
        await self._first_lists()
        while True:
            await self._changed.wait()
            await asyncio.sleep(DEBOUNCE_S)
            self._changed.clear()
            try:
                await self._apply()
            except Exception:  # as above
                log.exception("applying the configuration failed; it is tried again")
                await asyncio.sleep(RESTART_S)
                self._changed.set()

    async def _first_lists(self) -> None:
        """Wait for the shards, for one namespace's pods however long it takes, and for the others' until patience ends."""
        await self._shard_reflector.synced.wait()
        waiting = {asyncio.create_task(r.synced.wait()): scope for scope, r in self._pod_reflectors.items()}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            _, unread = await asyncio.wait(waiting, timeout=self._patience_s)
            for task in unread:
                log_event(log, logging.ERROR, "namespace_unread", namespace=waiting[task], after_s=self._patience_s)
        finally:
            for task in waiting:
                task.cancel()

    async def _apply(self) -> None:
        pods = [pod for scope in self._pods.values() for pod in scope.known]
        config = desired_config(self._shards.ordered, pods, self._home)
        if config != self._applied:  # most news of pods change nothing here
            await self._keeper.apply(config)
            self._applied = config
