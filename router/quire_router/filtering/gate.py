"""Holds a stream's events back until an outside moderator has allowed what they say, choice by choice.

text of a choice   ......... allowed .........|.. held: less than check_chars, or being asked about ..|
"""

from collections.abc import Awaitable, Callable, Sequence

from quire_router.filtering.channels import Piece

OVERLAP_CHARS = 200
"""Of the text that was allowed before: what is asked about may begin within a sentence."""
Ask = Callable[[str], Awaitable[bool]]
"""Whether a text may go on."""
Block = Callable[[int], Sequence[Piece]]
"""The events that end a choice of which something is withheld."""


class Gate:
    """One for each stream."""

    def __init__(self, ask: Ask, block: Block, *, check_chars: int) -> None:
        self._ask = ask
        self._block = block
        self._check_chars = check_chars
        self._held: list[Piece] = []
        self._pending: dict[int, list[str]] = {}
        self._before: dict[int, str] = {}
        self._blocked: set[int] = set()

    async def take(self, pieces: Sequence[Piece]) -> list[bytes]:
        """What may go on, now that these have come."""
        out: list[bytes] = []
        for piece in pieces:
            if piece.choice in self._blocked:
                continue
            self._held.append(piece)
            if piece.choice is None:
                continue
            if piece.text:
                self._pending.setdefault(piece.choice, []).append(piece.text)
            if piece.is_end or sum(map(len, self._pending.get(piece.choice, ()))) >= self._check_chars:
                await self._check(piece.choice)
                out += self._released()
        return out + self._released()

    async def end(self) -> list[bytes]:
        """What is left when nothing more comes."""
        for choice in list(self._pending):
            await self._check(choice)
        return self._released()

    async def _check(self, choice: int) -> None:
        """Ask about what is pending of a choice; it is not pending any more then."""
        text = "".join(self._pending.pop(choice, ()))
        if not text:
            return
        if await self._ask(self._before.get(choice, "") + text):
            self._before[choice] = text[-OVERLAP_CHARS:]
            return
        self._blocked.add(choice)
        self._held = [piece for piece in self._held if piece.choice != choice or not piece.says]
        self._held += self._block(choice)

    def _released(self) -> list[bytes]:
        """In their order, but what waits for an answer, and what belongs to no choice behind it."""
        out: list[bytes] = []
        left: list[Piece] = []
        for piece in self._held:
            waits = bool(left) if piece.choice is None else piece.choice in self._pending
            if waits:
                left.append(piece)
            else:
                out.append(piece.data)
        self._held = left
        return out
