"""Keeps the pool and its watchers in line with the configuration: one prober and one event subscriber for each endpoint.

`apply` takes a whole configuration from whichever source: a file, or the cluster's API.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from quire_contract.router_config import RouterConfig, RouterConfigError, read_config
from quire_contract.telemetry import log_event
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.live_config import LiveConfig
from quire_router.prompts import PromptReader

log = logging.getLogger("quire_router.keeper")

POLL_S = 0.25
RESTART_S = 1.0

Watcher = Callable[[Endpoint], list[Coroutine[Any, Any, None]]]
"""Makes the coroutines that watch one endpoint."""
LastWatcher = Callable[[Endpoint], Coroutine[Any, Any, None]]
"""Makes the coroutine that watches over an endpoint's last requests after it was removed."""


class EndpointKeeper:
    """Applies configurations. Use from one task."""

    def __init__(
        self,
        pool: EndpointPool,
        index: KvIndex,
        sent: SentIndex,
        reader: PromptReader,
        watcher: Watcher,
        live: LiveConfig,
        last_watcher: LastWatcher | None = None,
    ) -> None:
        """Without `last_watcher`, nobody notices that a removed endpoint dies silently with requests."""
        self._pool = pool
        self._index = index
        self._sent = sent
        self._reader = reader
        self._watcher = watcher
        self._live = live
        self._last_watcher = last_watcher
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._last_tasks: set[asyncio.Task[None]] = set()

    async def apply(self, config: RouterConfig) -> None:
        """Serve what the configuration says, from now on. Requests that run at removed endpoints go on there."""
        changes = self._pool.apply(config)
        self._live.swap(config)  # no await between the two: no request sees one without the other
        for endpoint in changes.removed:
            await self._stop(endpoint)
            if endpoint.uses and self._last_watcher is not None:
                task = asyncio.create_task(self._last_watcher(endpoint), name=f"last requests of {endpoint.id}")
                self._last_tasks.add(task)
                task.add_done_callback(self._last_tasks.discard)
        for endpoint in changes.added:
            self._tasks[endpoint.id] = asyncio.create_task(self._watch(endpoint), name=f"watch {endpoint.id}")
        self._reader.keep_only(endpoint.digest for endpoint in self._pool if endpoint.digest is not None)
        log_event(
            log,
            logging.INFO,
            "configured",
            models=len(self._pool.models),
            endpoints=len(self._pool),
            added=len(changes.added),
            removed=len(changes.removed),
        )

    def check(self, config: RouterConfig, source: str) -> None:
        """RouterConfigError if `config` is not one to apply; `source` names it there. Takes long: for threads."""
        self._live.check(config, source)

    async def close(self) -> None:
        """Stop watching."""
        for endpoint in self._pool:
            await self._stop(endpoint)
        last = tuple(self._last_tasks)
        for task in last:
            task.cancel()
        await asyncio.gather(*last, return_exceptions=True)

    async def _stop(self, endpoint: Endpoint) -> None:
        task = self._tasks.pop(endpoint.id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._index.clear(endpoint.id)
        self._sent.clear(endpoint.id)

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    for watching in self._watcher(endpoint):
                        group.create_task(watching)
            except* Exception:  # the one loop that must live: an endpoint that nobody watches would be lost for good
                log.exception("watching endpoint %s failed; it starts anew", endpoint.id)
            endpoint.mark_not_ready("its watcher failed and starts anew")
            await asyncio.sleep(RESTART_S)


class FileSource:
    """A router_config file, polled: the last good content holds until a better one is there."""

    def __init__(self, path: Path, keeper: EndpointKeeper) -> None:
        self._path = path
        self._keeper = keeper
        self.last_contact_s = float("-inf")
        """The event loop's time when the file was last there."""
        self.num_refused = 0
        """1 while the file's present content is not used."""
        self.num_refusals = 0
        """Contents that were refused."""
        self._seen: tuple[int, int, int] | None = None

    @property
    def state(self) -> str:
        """A file is there from the beginning."""
        return "live"

    async def load(self) -> None:
        """Apply the file as it is. RouterConfigError if it cannot be used."""
        self._seen = _version_of(self._path)
        await self._keeper.apply(await asyncio.to_thread(self._read))
        self.last_contact_s = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Follow the file until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.poll()
            except Exception:  # a loop that must live: the router would serve what it knows now for ever
                log.exception("applying the configuration failed; its next version is tried")

    async def poll(self) -> bool:
        """Look once. Whether a new content was applied."""
        version = _version_of(self._path)
        if version is not None:
            self.last_contact_s = asyncio.get_running_loop().time()
        if version == self._seen:
            return False
        self._seen = version
        try:
            config = await asyncio.to_thread(self._read)
        except RouterConfigError as error:
            self.num_refused = 1
            self.num_refusals += 1
            log_event(log, logging.ERROR, "configuration_refused", kept="last good one", problem=str(error))
            return False
        await self._keeper.apply(config)
        self.num_refused = 0
        return True

    def _read(self) -> RouterConfig:
        """The file's content, in a thread: thousands of a filter's words take longer to compile than streams may wait."""
        config = read_config(self._path)
        self._keeper.check(config, str(self._path))
        return config


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
