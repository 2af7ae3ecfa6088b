"""One choice on its way out: tokens become text, stop strings end it, log-probabilities travel with the text they belong to.

Pure: no clock, no network, no JSON. What comes out, put together, does not depend on how the tokens were grouped on arrival.

    tokens ──> detokeniser ──> stop matcher ──> released text
      │                            │ holds what may become a stop string
      └── log-probabilities ───────┴─> released with the text that their token begins
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from quire_contract.prompt import TokenStream
from quire_worker.engine.messages import ChoiceOutput
from quire_worker.request import PromptLogprobs, TokenLogprobs
from quire_worker.server.stop_matcher import StopMatcher


class TokenEntry(NamedTuple):
    """A token with its log-probabilities and where its text begins, in characters of the choice's text."""

    token_id: int
    logprobs: TokenLogprobs
    text_offset: int


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """What one arrival of tokens let out."""

    text: str
    token_ids: list[int]
    """The tokens that arrived and count, text held back or not; up to the one that completed a stop string."""
    entries: list[TokenEntry]
    """Log-probabilities released, of tokens whose text has begun to be released. Empty where none were asked for."""
    finish_reason: str | None
    """None, "stop", "length" or "repetition"."""
    stop_reason: int | str | None
    """The stop string, or the token of stop_token_ids, that ended the choice."""
    scores: Sequence[PromptLogprobs] | None = None
    """With a choice's first piece, where asked for: the log-probabilities of its prompt."""
    is_silent: bool = False
    """Only its tokens count; an answer must not see it. See token_pieces."""

    @property
    def is_empty(self) -> bool:
        """Nothing in it for a client."""
        return not self.text and not self.entries and self.finish_reason is None


class Choice:
    """Takes a choice's outputs in order; see the module."""

    def __init__(
        self,
        detokeniser: TokenStream,
        stops: Sequence[str],
        *,
        include_stop: bool = False,
        min_tokens: int = 0,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self._detokeniser = detokeniser
        self._matcher = StopMatcher(stops, include=include_stop)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._stop_token_ids = frozenset(stop_token_ids)
        self._pending: collections.deque[TokenEntry] = collections.deque()
        self.num_fed = 0
        """Characters that the tokens have made so far, held ones included."""
        self._num_released = 0
        self.num_tokens = 0
        """Tokens that count, so far."""
        self.finish_reason: str | None = None

    @property
    def held(self) -> str:
        """Text that may become a stop string."""
        return self._matcher.held

    def push(self, output: ChoiceOutput) -> Piece:
        """Take the next tokens. After a piece with a finish reason nothing must be pushed."""
        assert self.finish_reason is None, "a finished choice takes no more tokens"
        texts: list[str] = []
        entries: list[TokenEntry] = []
        stop: str | None = None
        num_taken = 0
        for index, token_id in enumerate(output.token_ids):
            num_taken += 1
            self.num_tokens += 1
            if output.logprobs is not None:
                self._pending.append(TokenEntry(token_id, output.logprobs[index], self.num_fed))
            ends = index == len(output.token_ids) - 1 and output.stop_token_id is not None
            if not ends or self._include_stop:
                stop = self._take_text(self._detokeniser.push(token_id), texts)
            self._release(entries)
            if stop is not None:
                break
        if stop is None and output.finish_reason is not None:
            stop = self._finish(texts, entries)
        self.finish_reason = "stop" if stop is not None else output.finish_reason
        return Piece(
            text="".join(texts),
            token_ids=output.token_ids[:num_taken],
            entries=entries,
            finish_reason=self.finish_reason,
            stop_reason=stop if stop is not None else self._stop_token(output),
        )

    def _take_text(self, text: str, texts: list[str]) -> str | None:
        """Let `text` through the matcher; the stop string it completed, if any."""
        if not text:
            return None
        released, stop = self._matcher.feed(text, armed=self.num_tokens >= self._min_tokens)
        self.num_fed += len(text)
        self._num_released += len(released)
        texts.append(released)
        return stop

    def _release(self, entries: list[TokenEntry]) -> None:
        """A token goes out once the text that begins with it has begun to; one inside or behind a stop string never does."""
        while self._pending and self._pending[0].text_offset < self._num_released:
            entries.append(self._pending.popleft())

    def _finish(self, texts: list[str], entries: list[TokenEntry]) -> str | None:
        """Let out all that was held, unless the last characters complete a stop string: then return that."""
        stop = self._take_text(self._detokeniser.finish(), texts)
        if stop is not None:
            self._release(entries)
            return stop
        texts.append(self._matcher.flush())
        entries.extend(self._pending)
        self._pending.clear()
        return None

    def _stop_token(self, output: ChoiceOutput) -> int | str | None:
        """A token the request named; the model's own end tokens are no reason worth telling."""
        if output.finish_reason == "repetition":
            return "repetition_detected"
        return output.stop_token_id if output.stop_token_id in self._stop_token_ids else None
