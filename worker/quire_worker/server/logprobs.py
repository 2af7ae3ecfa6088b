"""Log-probabilities in the two forms that OpenAI's API has."""

from collections.abc import Sequence
from typing import Protocol

from quire_contract.openai.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from quire_worker.request import TokenLogprobs
from quire_worker.server.choice import TokenEntry

_LEAST_LOGPROB = -9999.0
"""JSON has no infinity; OpenAI's clients know this number for "impossible"."""


class Vocabulary(Protocol):
    """What single tokens look like."""

    def token_text(self, token_id: int) -> str:
        """The token alone as text; special tokens by name, broken UTF-8 as U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The token's own bytes, which may be part of a character."""
        ...


class TokensByNumber:
    """A vocabulary whose tokens are named by their ids, for clients that count on no token being spelt like another."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def token_text(self, token_id: int) -> str:
        return f"token_id:{token_id}"

    def token_bytes(self, token_id: int) -> bytes:
        return self._vocabulary.token_bytes(token_id)


def chat_logprobs(entries: Sequence[TokenEntry], vocabulary: Vocabulary) -> ChatLogprobs:
    """One entry a token, with its bytes, so that clients can put characters together."""
    return ChatLogprobs(content=[_chat_entry(entry, vocabulary) for entry in entries])


def completion_logprobs(
    entries: Sequence[TokenEntry], vocabulary: Vocabulary, num_before: int = 0
) -> CompletionLogprobs:
    """Parallel arrays. `top_logprobs` also holds the chosen token, as in OpenAI's. So many characters stand before the choice's text."""
    return CompletionLogprobs(
        tokens=[vocabulary.token_text(entry.token_id) for entry in entries],
        token_logprobs=[finite(entry.logprobs.logprob) for entry in entries],
        top_logprobs=[top_by_text(entry.token_id, entry.logprobs, vocabulary) for entry in entries],
        text_offset=[num_before + entry.text_offset for entry in entries],
    )


def _chat_entry(entry: TokenEntry, vocabulary: Vocabulary) -> TokenLogprob:
    logprobs = entry.logprobs
    return TokenLogprob(
        token=vocabulary.token_text(entry.token_id),
        logprob=finite(logprobs.logprob),
        bytes=list(vocabulary.token_bytes(entry.token_id)),
        top_logprobs=[
            TopLogprob(
                token=vocabulary.token_text(token_id),
                logprob=finite(logprob),
                bytes=list(vocabulary.token_bytes(token_id)),
            )
            for token_id, logprob in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
        ],
    )


def top_by_text(token_id: int, logprobs: TokenLogprobs, vocabulary: Vocabulary) -> dict[str, float]:
    """Of tokens that look alike the likeliest stays."""
    top: dict[str, float] = {}
    for top_id, logprob in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True):
        top.setdefault(vocabulary.token_text(top_id), finite(logprob))
    top.setdefault(vocabulary.token_text(token_id), finite(logprobs.logprob))
    return top


def finite(logprob: float) -> float:
    """What JSON can say of it. Not `max`, which lets a NaN through, and JSON has none: clients would read null."""
    return logprob if logprob >= _LEAST_LOGPROB else _LEAST_LOGPROB
