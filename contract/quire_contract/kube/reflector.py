"""Keeps somebody told of all objects of one kind: list once, then watch for ever.

A watch resumes where it ended; a version that the server has forgotten (410), or has not reached (its store was restored from a
backup), is listed anew; while the server is away nothing is said, so that the last known state stays. A watch lasts for half a minute: no
longer does it stay silent through a middleman that lost the server. What fails here or in whoever is told is logged, and listed anew.
This module must not know what the objects mean or who keeps them.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from quire_contract.kube.client import KubeClient, KubeError, KubeObject
from quire_contract.kube.resources import ResourceKind
from quire_contract.telemetry import Trouble, log_event

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 5.0
"""A revoked key must reach routers soon after the server is back."""
_LONGEST_REFUSED_WAIT_S = 15.0
"""Where the server answers, but refuses: a namespace was deleted, or a role is missing."""
_WATCH_S = (30, 40)
"""So long a middleman may hide that the server is gone; what was taken back meanwhile (a name, a key) would still be served."""
_SHORT_WATCH_S = 1.0
_BOOKMARK = "BOOKMARK"
_GONE = 410
_REFUSED = frozenset({403, 404})


def unchanged(item: KubeObject) -> KubeObject:
    """The transformation that keeps all of an object."""
    return item


class Reflector:
    """Tells of one kind's objects, in one namespace or all, that `label_selector` selects."""

    def __init__(
        self,
        client: KubeClient,
        kind: ResourceKind,
        *,
        namespace: str | None,
        label_selector: str = "",
        on_replace: Callable[[list[KubeObject]], None],
        on_event: Callable[[str, KubeObject], None],
        rng: random.Random,
        transform: Callable[[KubeObject], KubeObject] = unchanged,
    ) -> None:
        """`on_replace` gets everything after each list, `on_event` each ADDED, MODIFIED or DELETED object after that.

        `transform` is called first on each object, to drop what nobody reads before many of them add up.
        """
        self._client = client
        self._kind = kind
        self._namespace = namespace
        self._label_selector = label_selector
        self._on_replace = on_replace
        self._on_event = on_event
        self._rng = rng
        self._transform = transform
        self._version: str | None = None
        self._num_failures = 0
        self._is_interrupted = False
        self._was_gone = False
        self._trouble = Trouble()
        self._last_contact_s = float("-inf")
        self._synced = asyncio.Event()

    @property
    def synced(self) -> asyncio.Event:
        """Set once the first list has been told."""
        return self._synced

    @property
    def last_contact_s(self) -> float:
        """The event loop's time when the server last answered or sent something; minus infinity if never."""
        return self._last_contact_s

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                if self._is_interrupted and self._version is not None:
                    await self._check_version(self._version)
                if self._version is None:
                    self._version = await self._list()
                await self._watch(self._version)
            except KubeError as error:
                await self._recover(error)
            except Exception:  # a loop that must live: nobody would learn of any change again
                logger.exception("following %s failed; it is listed anew", self._kind.kind)
                self._version = None
                await self._recover(KubeError(0, "Failed", "see the error above"))

    async def _check_version(self, version: str) -> None:
        """A store that was restored from a backup counts anew from there, and a watch from a version that it has not reached is silent."""
        async with contextlib.aclosing(
            self._client.list_pages(self._kind, self._namespace, self._label_selector, limit=1)
        ) as pages:
            async for _, present in pages:
                if version.isdecimal() and present.isdecimal() and int(present) < int(version):
                    self._version = None
                break
        self._is_interrupted = False

    async def _list(self) -> str:
        items: list[KubeObject] = []
        version = ""
        async for page, version in self._client.list_pages(self._kind, self._namespace, self._label_selector):  # noqa: B007
            items += [self._transform(item) for item in page]
        self._last_contact_s = _now_s()
        self._on_replace(items)
        self._synced.set()
        return version

    async def _watch(self, version: str) -> None:
        seconds, began_s = self._rng.randint(*_WATCH_S), _now_s()
        events = self._client.watch(self._kind, self._namespace, version, self._label_selector, seconds)
        async with contextlib.aclosing(events):
            async for event, item in events:
                self._last_contact_s = _now_s()
                self._is_well()
                if event != _BOOKMARK:
                    self._on_event(event, self._transform(item))
                self._version = item["metadata"]["resourceVersion"]
        self._last_contact_s = _now_s()
        if self._version == version and self._last_contact_s - began_s < _SHORT_WATCH_S:
            raise KubeError(
                0, "ClosedEarly", "the watch ended as soon as it began"
            )  # never storm a server that does so
        self._is_well()

    def _is_well(self) -> None:
        self._num_failures, self._was_gone = 0, False
        if self._trouble.is_over():
            log_event(logger, logging.INFO, "watch goes on", kind=self._kind.kind, namespace=self._namespace)

    async def _recover(self, error: KubeError) -> None:
        """Forget a version that the server has forgotten; wait longer after each failure in a row."""
        is_gone_first = error.status == _GONE and not self._was_gone
        self._was_gone = error.status == _GONE
        if self._was_gone:
            self._version = None
        self._is_interrupted = True
        self._num_failures += 1
        if is_gone_first:
            return
        most_s = _LONGEST_REFUSED_WAIT_S if error.status in _REFUSED else _LONGEST_WAIT_S
        longest = min(most_s, _FIRST_WAIT_S * 2 ** min(self._num_failures - 1, 10))
        wait_s = max(longest * self._rng.uniform(0.5, 1.0), min(error.retry_after_s or 0.0, _LONGEST_REFUSED_WAIT_S))
        if self._trouble.is_news(f"{error.status} {error.reason}"):
            log_event(
                logger,
                logging.WARNING,
                "watch interrupted",
                kind=self._kind.kind,
                namespace=self._namespace,
                status=error.status,
                reason=error.reason,
                retry_in_s=round(wait_s, 1),
            )
        await asyncio.sleep(wait_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
