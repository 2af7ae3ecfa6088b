"""One choice of a chat on its way from text to parts: parsed, its reasoning counted, its log-probabilities in step.

Pure. Made for each choice that an answer shows.
"""

from collections.abc import Callable, Sequence

from quire_contract.openai.responses import FinishReason
from quire_worker.server.choice import Piece, TokenEntry
from quire_worker.server.parsing.dialect import Reading
from quire_worker.server.parsing.message_parser import ScriptParser
from quire_worker.server.parts import ContentText, Part


class MessageReader:
    """Takes a choice's pieces in order."""

    def __init__(self, reading: Reading, token_text: Callable[[int], str], stem: str = "") -> None:
        """`token_text` is a token alone as text; calls are named after `stem`, see `formats.call_ids`."""
        self._reading = reading
        self._parser = reading.new_parser(stem)
        self._meter = ReasoningMeter(reading.new_parser(""), token_text) if reading.reasons else None
        self._entries: list[TokenEntry] = []

    def take(self, piece: Piece) -> list[Part]:
        """The parts that this piece completes; all that were held with the piece that finishes."""
        if self._meter is not None:
            self._meter.count(piece.token_ids)
        self._entries.extend(piece.entries)
        parts = list(self._parser.push(piece.text))
        if piece.finish_reason is not None:
            parts.extend(self._parser.finish())
        return parts

    def take_entries(self) -> list[TokenEntry]:
        """Log-probabilities that go with what is told next: those of tokens that have arrived since something was told."""
        entries, self._entries = self._entries, []
        return entries

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """What the client is told for the engine's reason, when the message is over."""
        return self._reading.finish_reason(self._parser, reason)

    @property
    def num_held(self) -> int:
        """Log-probabilities that have not been taken: those of the last tokens."""
        return len(self._entries)

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Tokens spent on reasoning so far; None for a model that does not reason."""
        return None if self._meter is None else self._meter.num_tokens


class ReasoningMeter:
    """Counts the tokens of a choice's reasoning, both tags included."""

    def __init__(self, parser: ScriptParser, token_text: Callable[[int], str]) -> None:
        """`parser` is the meter's own."""
        self._parser = parser
        self._token_text = token_text
        self._num_seen = 0
        self._is_over = False
        self.num_tokens = 0
        """Counted so far."""

    def count(self, token_ids: Sequence[int]) -> None:
        """The next tokens. Once reasoning is over they cost nothing."""
        for token_id in token_ids:
            if self._is_over:
                return
            self._num_seen += 1
            was_reasoning = self._parser.is_reasoning
            parts = self._parser.push(self._token_text(token_id))
            if was_reasoning or self._parser.is_reasoning:
                self.num_tokens = self._num_seen
            says = any(isinstance(part, ContentText) for part in parts)
            self._is_over = (was_reasoning and not self._parser.is_reasoning) or (says and self.num_tokens == 0)
