"""One pod at a time fills a folder of a shared cache.

The holder writes its name and a counter into a lease file every few seconds. Whoever waits watches the file: if it stays the same for
long enough by the waiter's own clock, the holder is dead, and the lease is taken over; no two clocks are compared. Short flock
sections order those who read and write the lease; where a file system has no flock, the holder finds out at its next beat.
This module must not know what is guarded.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from quire_worker.fetch.errors import InterruptedFetchError, Reason

BEAT_S = 5.0
STALE_S = 30.0
_POLL_S = 2.0


class _Held(msgspec.Struct, frozen=True):
    holder: str
    pod: str
    beat: int


class Lease:
    """A claim on `path`."""

    def __init__(
        self,
        path: Path,
        *,
        holder: str | None,
        pod: str,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """`holder` tells pods apart, so that a restarted one goes on at once; None: a random one. `pod` is for people.

        Clock and sleep are in seconds.
        """
        self._path = path
        self._lock_path = path.with_name(f"{path.name}.lock")
        self._pod = pod
        self._holder = holder or secrets.token_hex(8)
        self._clock = clock
        self._sleep = sleep
        self._beat = 0

    async def acquire(self, is_needless: Callable[[], bool], on_wait: Callable[[str], None]) -> bool:
        """Waits until the lease is ours. False as soon as `is_needless`: what it guards has been done by another holder.

        `on_wait` is told who holds it. Raises OSError if the cache cannot be written.
        """
        seen: bytes | None = None
        since_s = self._clock()
        while True:
            if await asyncio.to_thread(is_needless):
                return False
            held = await asyncio.to_thread(self._take, seen if self._clock() - since_s >= STALE_S else None)
            if held is None:
                return True
            if held != seen:
                seen, since_s = held, self._clock()
            on_wait(f"pod {_pod_of(held)} fetches the same model")
            await self._sleep(_POLL_S)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renews the lease while entered, then gives it up.

        If another took it over, the body is cancelled and InterruptedFetchError raised, in a group.
        """
        try:
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(self._keep())
                yield
                beating.cancel()
        finally:
            await asyncio.to_thread(self._release)

    async def _keep(self) -> None:
        while True:
            await self._sleep(BEAT_S)
            if not await asyncio.to_thread(self._renew):
                raise InterruptedFetchError(
                    Reason.UNREACHABLE, "another pod took over this fetch; waiting for it at the next start"
                )

    def _take(self, dead: bytes | None) -> bytes | None:
        """None if the lease is ours now; else what it holds. `dead` is a content that counts as nobody's."""
        with self._locked():
            held = self._read()
            if held is not None and held != dead and not self._is_ours():
                return held
            self._write()
            return None

    def _renew(self) -> bool:
        with self._locked():
            if not self._is_ours():
                return False
            self._write()
            return True

    def _release(self) -> None:
        with contextlib.suppress(OSError), self._locked():
            if self._is_ours():
                self._path.unlink()

    def _is_ours(self) -> bool:
        held = _decoded(self._read())
        return held is not None and held.holder == self._holder

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        self._beat += 1
        new = self._path.with_name(f"{self._path.name}.{self._holder}")
        new.write_bytes(msgspec.json.encode(_Held(self._holder, self._pod, self._beat)))
        new.replace(self._path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Among processes that see the same file system's locks; they vanish with their process."""
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            with contextlib.suppress(OSError):  # a file system without locks; see above
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _decoded(held: bytes | None) -> _Held | None:
    try:
        return None if held is None else msgspec.json.decode(held, type=_Held)
    except msgspec.MsgspecError:
        return None


def _pod_of(held: bytes) -> str:
    decoded = _decoded(held)
    return decoded.pod if decoded else "(unknown)"
