"""One choice on its way from pieces to the parts of a message, as the answers of /v1/responses and /v1/messages take it.

Pure. `PlainReader` is that of models whose text is all content.
"""

from collections.abc import Sequence
from typing import Protocol

from quire_worker.server.answers import Gathered
from quire_worker.server.choice import Piece, TokenEntry
from quire_worker.server.parts import Part, PlainText


class Reader(Protocol):
    """Takes a choice's pieces in order."""

    def take(self, piece: Piece) -> Sequence[Part]:
        """The parts that this piece completes; all that were held with the piece that finishes."""
        ...

    def take_entries(self) -> list[TokenEntry]:
        """Log-probabilities of the tokens that have arrived since they were last taken."""
        ...

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Tokens spent on reasoning so far; None for a model that does not reason."""
        ...


class PlainReader:
    """All text is content."""

    def __init__(self) -> None:
        self._parser = PlainText()
        self._entries: list[TokenEntry] = []
        self.num_reasoning_tokens: int | None = None

    def take(self, piece: Piece) -> Sequence[Part]:
        self._entries.extend(piece.entries)
        return self._parser.push(piece.text)

    def take_entries(self) -> list[TokenEntry]:
        entries, self._entries = self._entries, []
        return entries


def whole_piece(choice: Gathered) -> Piece:
    """A choice that has ended as one piece."""
    return Piece(
        text=choice.text,
        token_ids=choice.token_ids,
        entries=choice.entries,
        finish_reason=choice.reason,
        stop_reason=choice.stop_reason,
    )
