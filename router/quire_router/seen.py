"""Looks at an answer's parts as they pass: what they say was used, whether they came to their end, and whether they may go on.

Changes no part. It must not know what a request may use; whoever does gives it an `Allowance`.
"""

from collections.abc import AsyncGenerator, Callable

from quire_router.allowance import Allowance
from quire_router.answer import BrokenStreamError
from quire_router.call import Outcome
from quire_router.limits.meter import RefusedError
from quire_router.relay import Attach, Sink
from quire_router.usage.reading import StreamUsage

_TAIL_BYTES = 16 * 1024


class Seen:
    """What passed of an answer in parts."""

    __slots__ = ("_outcome", "allowance", "events", "is_broken", "is_complete", "is_cut", "refusal")

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

    @property
    def num_output(self) -> int:
        """Tokens, as far as they are known; none of an answer that costs nothing."""
        if self._outcome.cached_answer:
            return 0
        used = self._outcome.usage
        return self.events.num_events if used is None else used.output


async def watching(
    parts: AsyncGenerator[bytes, None], seen: Seen, tell: Callable[[RefusedError], bytes]
) -> AsyncGenerator[bytes, None]:
    """These parts; instead of the one for which nothing is left, if there is still one to come, what `tell` makes of the refusal."""
    see, allowance = seen.events.see, seen.allowance
    try:
        async for part in parts:
            if seen.refusal is not None and (part or seen.is_cut):
                yield tell(seen.refusal)
                return
            see(part)
            yield part
            if allowance is not None and seen.refusal is None and allowance.is_short(seen.num_output):
                try:
                    await allowance.extend(seen.num_output)
                except RefusedError as error:
                    seen.refusal = error
        seen.is_complete = True
    except BrokenStreamError:
        seen.is_broken = True
        raise


def seeing(attach: Attach, seen: Seen) -> Attach:
    """As `watching`, for the parts that take the short way: it ends where `watching` has something to do."""
    allowance = seen.allowance

    def attach_behind(sink: Sink) -> None:
        def see(part: bytes) -> bool:
            if seen.refusal is not None:
                seen.is_cut = True
                return False
            seen.events.see(part)
            return sink(part) and (allowance is None or not allowance.is_short(seen.num_output))

        attach(see)

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
