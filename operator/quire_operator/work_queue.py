"""What has to be looked at, and when: keys that coalesce, come back later, and wait longer after each failure.

A key is never worked on by two workers at once; a key that is added while it is worked on comes again after. This module must not
know what a key stands for.
"""

import asyncio
import heapq
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import Generic, TypeVar

from quire_contract.kube.client import KubeError
from quire_contract.telemetry import log_event

logger = logging.getLogger(__name__)

KeyT = TypeVar("KeyT", bound=Hashable)

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0
_AHEAD_S = 3600.0
"""Urgent keys count as due for so long already, so that no other one comes before them."""


class TemporaryError(Exception):
    """The cluster is not ready for this; the same key again after `delay_s`, or after a wait that grows if that is None."""

    def __init__(self, message: str, delay_s: float | None = None) -> None:
        super().__init__(message)
        self.delay_s = delay_s


class PermanentError(Exception):
    """Nothing to be done until the object changes. The message names the field."""


class WorkQueue(Generic[KeyT]):
    """Keys in the order in which they are due."""

    def __init__(self, rng: random.Random, urgent: Collection[KeyT] = ()) -> None:
        """`rng` spreads what would come back at the same time; `urgent` keys come before all others once they are due."""
        self._rng = rng
        self._urgent = frozenset(urgent)
        self._heap: list[tuple[float, int, KeyT]] = []
        self._due_s: dict[KeyT, float] = {}
        self._working: set[KeyT] = set()
        self._num_failures: dict[KeyT, int] = {}
        self._count = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that are due now and not worked on."""
        now_s = _now_s()
        return sum(due_s <= now_s for due_s in self._due_s.values())

    def add(self, key: KeyT, delay_s: float = 0.0) -> None:
        """`key` is due after `delay_s` at the latest; the earliest of several wishes counts."""
        due_s = _now_s() + (delay_s if delay_s > 0 or key not in self._urgent else -_AHEAD_S)
        if due_s < self._due_s.get(key, float("inf")):
            self._due_s[key] = due_s
            self._push(key, due_s)

    async def take(self) -> KeyT:
        """The key that has been due for longest, once one is. Every key that is taken must be given to `done`."""
        while True:
            key = self._pop()
            if key is not None:
                self._working.add(key)
                return key
            self._changed.clear()
            wait_s = self._heap[0][0] - _now_s() if self._heap else None
            try:
                async with asyncio.timeout(None if wait_s is None else max(0.0, wait_s)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: KeyT) -> None:
        """`key` may be taken again."""
        self._working.discard(key)
        if key in self._due_s:
            self._push(key, self._due_s[key])

    def succeeded(self, key: KeyT) -> None:
        """The next failure of `key` is the first again."""
        self._num_failures.pop(key, None)

    def failed(self, key: KeyT, delay_s: float | None = None) -> float:
        """Bring `key` back after `delay_s`, or after twice the last wait, with jitter. The wait in seconds."""
        if delay_s is None:
            count = self._num_failures.get(key, 0)
            self._num_failures[key] = count + 1
            longest_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(count, 10))
            delay_s = longest_s * self._rng.uniform(0.5, 1.0)
        self.add(key, delay_s)
        return delay_s

    def _push(self, key: KeyT, due_s: float) -> None:
        self._count += 1
        heapq.heappush(self._heap, (due_s, self._count, key))
        self._changed.set()

    def _pop(self) -> KeyT | None:
        """Entries that are superseded, or whose key is worked on (`done` pushes it anew), are dropped on the way."""
        while self._heap and self._heap[0][0] <= _now_s():
            due_s, _, key = heapq.heappop(self._heap)
            if key not in self._working and self._due_s.get(key) == due_s:
                del self._due_s[key]
                return key
        return None


async def work(
    queue: WorkQueue[KeyT],
    reconcile: Callable[[KeyT], Awaitable[None]],
    observe: Callable[[str], None],
) -> None:
    """One worker: take a key, reconcile it, for ever. `observe` is told "success", "retry", "permanent" or "error" for each."""
    while True:
        key = await queue.take()
        try:
            await reconcile(key)
        except TemporaryError as error:
            wait_s = queue.failed(key, error.delay_s)
            log_event(logger, logging.INFO, "will try again", key=key, reason=str(error), retry_in_s=round(wait_s, 1))
            observe("retry")
        except PermanentError as error:
            log_event(logger, logging.WARNING, "cannot be done", key=key, reason=str(error))
            queue.succeeded(key)
            observe("permanent")
        except KubeError as error:
            wait_s = queue.failed(key, error.retry_after_s)
            log_event(
                logger, logging.WARNING, "API request failed", key=key, reason=str(error), retry_in_s=round(wait_s, 1)
            )
            observe("retry")
        except Exception:
            # The one loop that must live: a bug that one object meets must not stop the others.
            logger.exception("reconcile failed key=%s", key)
            queue.failed(key)
            observe("error")
        else:
            queue.succeeded(key)
            observe("success")
        finally:
            queue.done(key)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
