"""Looks at an answer's parts as they pass: what they say was used, whether they came to their end, and whether they may go on.

Changes no part. It must not know what a request may use; whoever does gives it an `Allowance`.
"""

import re
from collections.abc import AsyncGenerator, Callable, Iterator

from quire_router.allowance import Allowance
from quire_router.answer import BrokenStreamError
from quire_router.call import Outcome
from quire_router.limits.meter import RefusedError
from quire_router.relay import Attach, Sink
from quire_router.usage.reading import StreamUsage, num_events

_AFTER_EVENT = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")
_TAIL_BYTES = 16 * 1024


class Seen:
    """What passed of an answer in parts."""

    __slots__ = (
        "_ahead",
        "_kept",
        "_outcome",
        "_paid",
        "allowance",
        "events",
        "is_broken",
        "is_complete",
        "is_cut",
        "refusal",
    )

    def __init__(self, outcome: Outcome, allowance: Allowance | None) -> None:
        self.events = StreamUsage()
        self.is_complete = False
        self.is_broken = False
        self.allowance = allowance
        """None: what it uses needs no watching."""
        self.refusal: RefusedError | None = None
        """Why nothing more may come."""
        self.is_cut = False
        """Something would have come, and was not given."""
        self._outcome = outcome
        self._kept = b""
        self._ahead = 0
        self._paid = 0

    @property
    def num_output(self) -> int:
        """Tokens that were given, as far as they are known; none of an answer that costs nothing."""
        if self._outcome.cached_answer:
            return 0
        used = self._outcome.usage
        return self.events.num_events if used is None else max(0, used.output - self._ahead)

    def may_pass(self, part: bytes) -> bool:
        """Whether nothing has to be reserved before the last event of `part`. If not, it is kept, and comes with the next `pieces`."""
        if self.refusal is not None:
            self.is_cut = True
            return False
        if self.allowance is None or not self._is_near(part):
            return True
        self._kept += part
        return False

    def pieces(self, part: bytes) -> Iterator[bytes]:
        """What was kept and `part`: whole, or event by event where more may have to be reserved between two of them."""
        part, self._kept = self._kept + part, b""
        if self.allowance is not None and self._is_near(part):
            *events, part = _AFTER_EVENT.split(part)
            for number, event in enumerate(events, 1):
                self._ahead = len(events) - number
                yield event
        yield part

    def _is_near(self, part: bytes) -> bool:
        assert self.allowance is not None, "what needs no watching is near nothing"
        return self.allowance.is_short(self.num_output + num_events(part))

    async def secure(self) -> None:
        """Reserve more if it is time; from a refusal on nothing may come."""
        if self.allowance is None or self.refusal is not None or not self.allowance.is_short(self.num_output):
            return
        try:
            await self.allowance.extend(self.num_output)
        except RefusedError as error:
            self.refusal, self._paid = error, self.num_output

    def cut(self) -> None:
        """What came after the refusal is not given: nobody pays for it."""
        self._ahead = 0
        if self._outcome.usage is not None:
            self._outcome.usage.output = min(self._outcome.usage.output, self._paid)


async def watching(
    parts: AsyncGenerator[bytes, None], seen: Seen, tell: Callable[[RefusedError], bytes]
) -> AsyncGenerator[bytes, None]:
    """These parts; instead of the one for which nothing is left, if there is still one to come, what `tell` makes of the refusal."""
    see = seen.events.see
    try:
        async for part in parts if seen.allowance is None else _with_end(parts):
            for piece in seen.pieces(part):
                if seen.refusal is not None and (piece or seen.is_cut):
                    seen.cut()
                    yield tell(seen.refusal)
                    return
                see(piece)
                yield piece
                await seen.secure()
        seen.is_complete = True
    except BrokenStreamError:
        seen.is_broken = True
        raise


async def _with_end(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """And then nothing, with which comes what was kept."""
    try:
        async for part in parts:
            yield part
    except BrokenStreamError:
        yield b""
        raise
    yield b""


def seeing(attach: Attach, seen: Seen) -> Attach:
    """As `watching`, for the parts that take the short way: it ends where `watching` has something to do."""

    look = seen.events.see

    def attach_behind(sink: Sink) -> None:
        def see(part: bytes) -> bool:
            look(part)
            return sink(part)

        def see_if_paid(part: bytes) -> bool:
            return seen.may_pass(part) and see(part)

        attach(see if seen.allowance is None else see_if_paid)

    return attach_behind


async def watching_bytes(parts: AsyncGenerator[bytes, None], seen: Seen) -> AsyncGenerator[bytes, None]:
    """Of a large answer that is no stream: its usage may lie anywhere, usually near the end."""
    tail = b""
    try:
        async for part in parts:
            tail = (tail + part)[-_TAIL_BYTES:]
            yield part
        seen.is_complete = True
    except BrokenStreamError:
        seen.is_broken = True
        raise
    finally:
        start = tail.rfind(b'"usage":')
        if start >= 0:
            seen.events.see(b"data: {" + _first_object(tail[start:]) + b"}\n\n")


def _first_object(text: bytes) -> bytes:
    """`text` up to where its first braces are balanced. Numbers and names only: no string in it holds a brace."""
    depth = 0
    for i, byte in enumerate(text):
        depth += (byte == 0x7B) - (byte == 0x7D)
        if byte == 0x7D and depth == 0:
            return text[: i + 1]
    return text
