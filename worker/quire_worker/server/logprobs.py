"""Log-probabilities in the two forms that OpenAI's API has."""

from collections.abc import Sequence
from typing import Protocol

from quire_contract.openai.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
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


def chat_logprobs(entries: Sequence[TokenEntry], vocabulary: Vocabulary) -> ChatLogprobs:
    """One entry a token, with its bytes, so that clients can put characters together."""
    return ChatLogprobs(content=[_chat_entry(entry, vocabulary) for entry in entries])


def completion_logprobs(entries: Sequence[TokenEntry], vocabulary: Vocabulary) -> CompletionLogprobs:
    """Parallel arrays. `top_logprobs` also holds the chosen token, as in OpenAI's."""
    return CompletionLogprobs(
        tokens=[vocabulary.token_text(entry.token_id) for entry in entries],
        token_logprobs=[_finite(entry.logprobs.logprob) for entry in entries],
        top_logprobs=[_top_by_text(entry, vocabulary) for entry in entries],
        text_offset=[entry.text_offset for entry in entries],
    )


def _chat_entry(entry: TokenEntry, vocabulary: Vocabulary) -> TokenLogprob:
    logprobs = entry.logprobs
    return TokenLogprob(
        token=vocabulary.token_text(entry.token_id),
        logprob=_finite(logprobs.logprob),
        bytes=list(vocabulary.token_bytes(entry.token_id)),
        top_logprobs=[
            TopLogprob(
                token=vocabulary.token_text(token_id),
                logprob=_finite(logprob),
                bytes=list(vocabulary.token_bytes(token_id)),
            )
            for token_id, logprob in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
        ],
    )


def _top_by_text(entry: TokenEntry, vocabulary: Vocabulary) -> dict[str, float]:
    """Of tokens that look alike the likeliest stays."""
    top: dict[str, float] = {}
    for token_id, logprob in zip(entry.logprobs.top_ids, entry.logprobs.top_logprobs, strict=True):
        top.setdefault(vocabulary.token_text(token_id), _finite(logprob))
    top.setdefault(vocabulary.token_text(entry.token_id), _finite(entry.logprobs.logprob))
    return top


def _finite(logprob: float) -> float:
    """Not `max`, which lets a NaN through, and JSON has none: clients would read null."""
    return logprob if logprob >= _LEAST_LOGPROB else _LEAST_LOGPROB
