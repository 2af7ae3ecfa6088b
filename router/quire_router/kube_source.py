"""The configuration of a router on a cluster: follows the operator's shards and the workers' pods through the API server.

Nothing is applied before everything was listed once; while the API server is away, the last known configuration holds, and a router that
starts then uses what its last process saved. A namespace that cannot be read while others can (it was deleted with its permissions) does
not keep the rest from being served. Changes that come together are applied together. What the objects mean is `config_shards`'s and
`worker_pods`'s, how they are followed the Reflector's.
"""

import asyncio
import functools
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire_contract import names
from quire_contract.kube.client import KubeClient
from quire_contract.kube.reflector import Reflector
from quire_contract.kube.resources import CONFIG_MAP, POD, ResourceKind
from quire_contract.router_config import RouterConfig
from quire_contract.telemetry import Trouble, log_event
from quire_router.config_shards import Shards, desired_with_lost
from quire_router.keeper import EndpointKeeper
from quire_router.saved_config import SavedConfig
from quire_router.worker_pods import WorkerPod, desired_config, key_of, read_pod

log = logging.getLogger("quire_router.kube")

DEBOUNCE_S = 0.05
"""Changes within this time are applied at once: a rollout touches many pods, the operator several shards."""
SAVED_AFTER_S = 3.0
"""An API server that has not told of the shards by then counts as away, and the saved configuration is used."""
RESTART_S = 1.0
PATIENCE_S = 10.0
"""How long the first configuration waits for a namespace after another one was read."""
ALL_NAMESPACES = "*"
WORKER_SELECTOR = f"{names.LABEL_MANAGED_BY}=quire-operator,{names.LABEL_ROLE}={names.ROLE_WORKER}"
_DELETED = "DELETED"

Document = dict[str, Any]
Key = tuple[str, str]


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
        saved: SavedConfig | None = None,
    ) -> None:
        self._client = client
        self._keeper = keeper
        self._home = home
        self._rng = rng
        self._patience_s = patience_s
        self._changed = asyncio.Event()
        self._applied: RouterConfig | None = None
        self._saved = saved
        self._last_saved = None if saved is None else saved.load()
        self._state = "none"
        self._trouble = Trouble()
        self._shards = Shards(keeper.check)
        self._news: deque[Callable[[], None]] = deque()
        """What was told and is not looked at yet."""
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

    @property
    def state(self) -> str:
        """ "none", "saved" or "live": where the configuration in force is from."""
        return self._state

    @property
    def num_refused(self) -> int:
        """Shards whose present content is not used."""
        return self._shards.num_refused

    @property
    def num_refusals(self) -> int:
        """Contents of shards that were refused."""
        return self._shards.num_refusals

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._saved is not None:
                tasks.create_task(self._saved.run())
            for reflector in self._reflectors():
                tasks.create_task(self._follow(reflector))
            tasks.create_task(self._apply_changes())

    def _reflectors(self) -> list[Reflector]:
        return [self._shard_reflector, *self._pod_reflectors.values()]

    def _reflector(self, kind: ResourceKind, namespace: str | None, selector: str, cache: Shards | Pods) -> Reflector:
        def replace(documents: list[Document]) -> None:
            self._news.append(functools.partial(cache.replace, documents))
            self._changed.set()

        def change(event: str, document: Document) -> None:
            self._news.append(functools.partial(cache.change, event, document))
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
        await self._begin()
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

    async def _begin(self) -> None:
        """Until everything was listed once. A server that is away meanwhile is stood in for by what was saved."""
        try:
            async with asyncio.timeout(SAVED_AFTER_S):
                await self._shard_reflector.synced.wait()
        except TimeoutError:
            if self._last_saved is not None:
                log_event(log, logging.WARNING, "configuration_restored", reason="the API server does not answer")
                await self._keeper.apply(self._last_saved)
                self._state = "saved"
        await self._first_lists()

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

    def _take_news(self) -> None:
        """In a thread: reading half a MiB and compiling thousands of a filter's words takes longer than streams may wait."""
        while self._news:
            self._news.popleft()()

    async def _apply(self) -> None:
        await asyncio.to_thread(self._take_news)
        pods = [pod for scope in self._pods.values() for pod in scope.known]
        wanted = desired_config(self._shards.ordered, pods, self._home)
        config = desired_with_lost(wanted, self._shards.lost, self._applied or self._last_saved)
        if config is None:
            if self._trouble.is_news("settings"):
                log_event(log, logging.ERROR, "not_configured", reason="the shard with the settings cannot be used")
            return
        if config != self._applied:  # most news of pods change nothing here
            await self._keeper.apply(config)
            self._applied, self._state = config, "live"
            if self._saved is not None:
                self._saved.keep(config)
