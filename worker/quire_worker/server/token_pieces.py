"""A choice as pieces of one token each: what a router is told of, and what a worker that takes the choice over makes again from its tokens.

    tokens 1 ... N ──> pieces 1 ... N ──> (the choice ends) ──> one more piece, with the rest of the text and the reason

The pieces follow from the tokens alone, never from how they arrived. Where log-probabilities are shown, a token's piece is let out with its
own text and entry once all its text may go out, because nobody else could know the entry: of tokens that are still held nothing has been
sent, and whoever takes over samples them again.

Pure, as `Choice` is.
"""

import collections
from typing import NamedTuple

from msgspec.structs import replace

from quire_worker.engine.messages import ChoiceOutput
from quire_worker.request import TokenLogprobs
from quire_worker.server.choice import Choice, Piece, TokenEntry

_SENT = TokenLogprobs(logprob=0.0, rank=1, top_ids=(), top_logprobs=())
"""In place of log-probabilities that have gone out, and that nobody here knows."""


class _Token(NamedTuple):
    """One that has not been let out."""

    token_id: int
    begin: int
    """Where its text begins, in characters of the choice's."""


class TokenPieces:
    """Takes a choice's outputs in order, first those of another worker."""

    def __init__(self, choice: Choice, *, has_entries: bool, include_stop: bool) -> None:
        """`has_entries`: log-probabilities are shown. `include_stop` as the choice has it."""
        self._choice = choice
        self._has_entries = has_entries
        self._include_stop = include_stop
        self._tokens: collections.deque[_Token] = collections.deque()
        self._entries: collections.deque[TokenEntry] = collections.deque()
        """Released by the choice, of the first of `_tokens`."""
        self._num_sent = 0
        """Characters in the pieces so far."""
        self._text = ""
        """Released by the choice, behind those."""
        self._num_released = 0
        self._num_fed = 0

    def push(self, output: ChoiceOutput) -> list[Piece]:
        """The pieces that this output lets out."""
        if len(output.token_ids) == 1 and output.finish_reason is None:
            return self._push(output)
        pieces: list[Piece] = []
        last = len(output.token_ids) - 1
        for index, token_id in enumerate(output.token_ids):
            one = replace(
                output,
                token_ids=[token_id],
                logprobs=None if output.logprobs is None else [output.logprobs[index]],
                finish_reason=None,
                stop_token_id=output.stop_token_id if index == last else None,
            )
            pieces += self._push(one)
            if self._choice.finish_reason is not None:
                return pieces
        if output.finish_reason is not None:
            pieces += self._push(replace(output, token_ids=[], logprobs=None))
        return pieces

    def again(self, token_id: int, *, ends: bool, is_finished: bool) -> list[Piece]:
        """The pieces of a token that came elsewhere; `ends`: it is one that ends the choice, and so has no text.

        Of a choice that is finished all tokens are told of, of others only those whose text has gone out."""
        stop = token_id if ends else None
        output = ChoiceOutput(request_id="", choice=0, token_ids=[token_id], stop_token_id=stop)
        if not self._has_entries:
            return self._push(output)
        if is_finished:
            return self._push(replace(output, logprobs=[_SENT]))
        begin = self._choice.num_fed
        piece = self._choice.push(output)
        self._num_fed = self._choice.num_fed
        self._release(piece.text)
        if piece.finish_reason is None:
            whole = self._text + ("" if self._include_stop else self._choice.held)
            num_new = self._num_fed - self._num_sent
            text = whole[len(whole) - num_new :] if num_new > 0 else ""
        else:
            text = self._text
        self._text, self._num_sent = "", self._num_sent + len(text)
        told = _piece(text, [token_id], [TokenEntry(token_id, _SENT, begin)])
        return [told] if piece.finish_reason is None else [told, _end(piece, "", [])]

    def _push(self, output: ChoiceOutput) -> list[Piece]:
        """Of one token, or of none at the end."""
        if self._has_entries and output.token_ids:
            self._tokens.append(_Token(output.token_ids[0], self._choice.num_fed))
        piece = self._choice.push(output)
        if self._has_entries:
            if output.token_ids:
                self._num_fed = self._choice.num_fed
            return self._whole_tokens(piece)
        if piece.finish_reason is None or not piece.token_ids:
            return [piece]
        return [_piece(piece.text, piece.token_ids, []), _end(piece, "", [])]

    def _whole_tokens(self, piece: Piece) -> list[Piece]:
        """A piece for each token of which all text is out; at the end, for all that have an entry."""
        self._release(piece.text)
        self._entries.extend(piece.entries)
        is_end = piece.finish_reason is not None
        pieces: list[Piece] = []
        while self._entries:
            end = self._tokens[1].begin if len(self._tokens) > 1 else self._num_fed
            if end > self._num_sent + len(self._text) and not is_end:
                break
            num_chars = max(0, end - self._num_sent)
            text, self._text = self._text[:num_chars], self._text[num_chars:]
            self._num_sent += len(text)
            pieces.append(_piece(text, [self._tokens.popleft().token_id], [self._entries.popleft()]))
        if is_end:
            pieces.append(_end(piece, self._text, [token.token_id for token in self._tokens]))
        return pieces

    def _release(self, text: str) -> None:
        """The choice let out `text`; some of it may have gone out elsewhere already."""
        num_gone = self._num_sent + len(self._text) - self._num_released
        self._num_released += len(text)
        self._text += text[max(0, num_gone) :]


def _piece(text: str, token_ids: list[int], entries: list[TokenEntry]) -> Piece:
    return Piece(text=text, token_ids=token_ids, entries=entries, finish_reason=None, stop_reason=None)


def _end(piece: Piece, text: str, token_ids: list[int]) -> Piece:
    return replace(piece, text=text, token_ids=token_ids, entries=[])
