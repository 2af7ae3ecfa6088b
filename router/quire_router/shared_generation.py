"""One answer, read by several: who comes late gets what was there before, and each goes at its own pace.

    worker -> task -> [part part part ...] -> reader, reader, reader

The task takes the next part only when a reader has read all there is, so it is never faster than the fastest of them: alone, a client
slows its worker down as it would without this. What is behind the fastest reader waits in memory for the others. A reader that falls too
far behind is ended with an error, like any stream that breaks: it must neither hold up the rest nor fill the memory.

Whoever began it may leave; it goes on while anybody reads, and ends with the last one.

One reader is its owner, who pays for it where generations cost something: the first one, after it has left the next one, in the end
whoever first has all of it. So no answer is had for nothing by leaving it to a second request.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from multidict import CIMultiDict

from quire_contract.openai.errors import ApiError, unavailable
from quire_router.answer import Answer, BrokenStreamError

Owns = Callable[[bool], None]
"""Hears whether its reader is the owner, at first and whenever that changes."""

MAX_LAG_BYTES = 4 * 1024 * 1024
"""That a reader may be behind the fastest one."""
MAX_LAG_WHEN_SHORT_BYTES = 64 * 1024
"""The same while all shared answers together are at their bound."""
MAX_SHARED_BYTES = 64 * 1024 * 1024
"""Parts that are kept for readers, of all shared answers. Beyond it nobody can join an answer that has begun."""

MAX_PIECE_BYTES = 64 * 1024
"""Of what a latecomer gets at once, unless one part is longer."""


class SharedBytes:
    """What all generations keep together."""

    def __init__(self, limit: int = MAX_SHARED_BYTES) -> None:
        self.limit = limit
        self.num_bytes = 0

    @property
    def is_short(self) -> bool:
        """Whether no more should be kept than must be."""
        return self.num_bytes > self.limit


class Generation:
    """Made inside a running loop. Begins at once; `join` before anything else is awaited, or it ends for want of readers."""

    def __init__(
        self,
        source: Callable[[], Awaitable[Answer]],
        *,
        max_join_bytes: int,
        shared: SharedBytes,
        on_closed: Callable[["Generation"], None],
    ) -> None:
        """`on_closed` is called once, when nobody can join any more: it is over, or too much of it has been sent."""
        self._source = source
        self._max_join_bytes = max_join_bytes
        self._shared = shared
        self._on_closed = on_closed
        self.is_open = True
        """Whether newcomers may join."""
        self._parts: list[bytes] = []
        self._num_dropped = 0
        self._end = 0
        """Bytes that came so far."""
        self._readers: dict[_Reader, None] = {}
        self._owner: _Reader | None = None
        self._is_paid = False
        """Whether its owner has all of it: then nobody else will be."""
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._head: Answer | None = None
        self._error: Exception | None = None
        self._is_over = False
        self._task = asyncio.create_task(self._run(), name="shared generation")

    async def join(self, owns: Owns) -> Answer:
        """The answer from its beginning. ApiError if there is none: all who wait get the same."""
        assert self.is_open, "a closed generation has lost its beginning"
        reader = _Reader(self, owns)
        self._readers[reader] = None
        owns(False)
        if self._owner is None:
            self._give_to(reader)
        try:
            while self._head is None and not self._is_over:
                await self._changed.wait()
            if self._head is None:
                raise _again(self._error)
        except BaseException:
            await self._leave(reader)
            raise
        head = self._head
        headers: CIMultiDict[str] = head.headers.copy()
        if head.body is not None:
            self._has_all(reader)
            await self._leave(reader)
            return Answer(status=head.status, headers=headers, body=head.body)
        return Answer(
            status=head.status,
            headers=headers,
            parts=reader.parts(),
            is_events=head.is_events,
            release=lambda: self._leave(reader),
        )

    # What the readers see

    def take(self, reader: "_Reader") -> bytes | None:
        """The reader's next parts. None: there is none yet. StopAsyncIteration at the end; BrokenStreamError where it broke."""
        if reader.is_cut:
            raise BrokenStreamError("was read too slowly: others read the same answer, and could not wait")
        place = reader.num_read - self._num_dropped
        if place < len(self._parts):
            return self._next_parts(reader, place)
        if not self._is_over:
            return None
        if self._error is not None:
            raise _again(self._error)
        self._has_all(reader)
        raise StopAsyncIteration

    def _next_parts(self, reader: "_Reader", place: int) -> bytes:
        """As many as make a piece: one by one, a latecomer's would keep the event loop busy."""
        end, size = place, 0
        while end < len(self._parts) and (size == 0 or size + len(self._parts[end]) <= MAX_PIECE_BYTES):
            size += len(self._parts[end])
            end += 1
        reader.num_read += end - place
        reader.num_bytes += size
        return self._parts[place] if end == place + 1 else b"".join(self._parts[place:end])

    async def more(self) -> None:
        """Wait until something has changed."""
        self._wanted.set()
        await self._changed.wait()

    async def _leave(self, reader: "_Reader") -> None:
        self._remove(reader)
        if self._readers:
            return
        self._close()
        self._forget(len(self._parts))
        if not self._is_over:
            self._task.cancel()
        await asyncio.wait({self._task})  # its worker is free when the last reader is gone

    # Who owns it

    def _give_to(self, reader: "_Reader") -> None:
        before, self._owner = self._owner, reader
        if before is not None and before in self._readers:
            before.owns(False)
        reader.owns(True)

    def _has_all(self, reader: "_Reader") -> None:
        if not self._is_paid:
            self._is_paid = True
            if self._owner is not reader:
                self._give_to(reader)

    def _remove(self, reader: "_Reader") -> None:
        self._readers.pop(reader, None)
        if self._owner is reader and not self._is_paid and self._readers:
            self._give_to(next(iter(self._readers)))

    # What the task does

    async def _run(self) -> None:
        answer: Answer | None = None
        try:
            answer = await self._source()
            self._head = answer
            self._tell()
            if answer.parts is not None:
                await self._read(answer.parts)
        except asyncio.CancelledError:
            gone = self._head is None
            self._error = unavailable("The request was given up.") if gone else BrokenStreamError("was given up")
        except Exception as error:  # noqa: BLE001 - it is each reader's to handle
            self._error = error
        finally:
            self._is_over = True
            self._close()
            self._tell()
            if not self._readers:
                self._forget(len(self._parts))
            if answer is not None:
                with contextlib.suppress(Exception):
                    await answer.close()

    async def _read(self, parts: AsyncGenerator[bytes, None]) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                part = await anext(parts)
            except StopAsyncIteration:
                return
            if part:
                self._keep(part)
            self._tell()

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self._end += len(part)
        self._shared.num_bytes += len(part)
        if self.is_open and (self._end > self._max_join_bytes or self._shared.is_short):
            self._close()
        if not self.is_open:
            self._cut_laggards()
            self._forget(min((r.num_read for r in self._readers), default=0) - self._num_dropped)

    def _cut_laggards(self) -> None:
        max_lag = MAX_LAG_WHEN_SHORT_BYTES if self._shared.is_short else MAX_LAG_BYTES
        last = self._parts[-1]
        for reader in [r for r in self._readers if self._end - len(last) - r.num_bytes > max_lag]:
            reader.is_cut = True
            self._remove(reader)

    def _forget(self, number: int) -> None:
        """Drop the first parts that are kept."""
        if number > 0:
            size = sum(map(len, self._parts[:number]))
            del self._parts[:number]
            self._num_dropped += number
            self._shared.num_bytes -= size

    def _close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._on_closed(self)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class _Reader:
    """Where one client is."""

    __slots__ = ("_generation", "is_cut", "num_bytes", "num_read", "owns")

    def __init__(self, generation: Generation, owns: Owns) -> None:
        self._generation = generation
        self.owns = owns
        self.num_read = 0
        self.num_bytes = 0
        self.is_cut = False

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """All of the answer."""
        while True:
            try:
                part = self._generation.take(self)
            except StopAsyncIteration:
                return
            if part is None:
                await self._generation.more()
            else:
                yield part


def _again(error: Exception | None) -> Exception:
    """An error of its own for each reader: one that is raised in several tasks would collect all their frames."""
    if isinstance(error, ApiError):
        return ApiError(
            error.status, error.message, type=error.type, param=error.param, code=error.code, headers=error.headers
        )
    if isinstance(error, BrokenStreamError):
        return BrokenStreamError(*error.args)
    return error or RuntimeError("a generation that is over without an answer has an error")
