"""Vectors as the answers of /v1/embeddings, /v1/rerank and /v1/score.

Large answers are made in slices of about a millisecond, between which the event loop serves others. Must not know the engine.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from operator import mul
from typing import Any

import msgspec

from quire_contract.openai.embedding_responses import (
    Embedding,
    EmbeddingList,
    EmbeddingUsage,
    RerankDocument,
    RerankResult,
    Score,
)

_SLICE_BYTES = 64 * 1024
"""Of vectors: about a millisecond's work."""


def usage_of(num_tokens: int) -> EmbeddingUsage:
    """Of inputs with so many tokens together."""
    return EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)


async def embedding_list(
    vectors: Sequence[bytes], model: str, usage: EmbeddingUsage, *, as_base64: bool
) -> list[bytes]:
    """The JSON of an EmbeddingList, in pieces: put together it may be megabytes. Vectors are little-endian float32."""
    encode = msgspec.json.Encoder().encode
    form = _base64 if as_base64 else _numbers
    items = []
    async for index, vector in _sliced(vectors):
        items.append(encode(Embedding(index=index, embedding=form(vector))))
        items.append(b",")
    # Around the items stands what is encoded without any.
    before, after = encode(EmbeddingList(data=[], model=model, usage=usage)).split(b"[]", 1)
    return [before + b"[", *items[:-1], b"]" + after]


async def cosines(firsts: Sequence[bytes], seconds: Sequence[bytes]) -> list[float]:
    """Of each pair of vectors of length 1; one first stands for all."""
    same = _numbers(firsts[0]) if len(firsts) == 1 else None
    found = []
    async for index, vector in _sliced(seconds):
        first = _numbers(firsts[index]) if same is None else same
        found.append(max(-1.0, min(1.0, sum(map(mul, first, _numbers(vector))))))
    return found


def scores_of(vectors: Sequence[bytes]) -> list[float]:
    """The one number of each vector that a cross-encoder makes."""
    return [_numbers(vector)[0] for vector in vectors]


def rerank_results(scores: Sequence[float], texts: Sequence[str] | None, top_n: int | None) -> list[RerankResult]:
    """The best first, the earlier document among equals; with the documents' `texts` if they are given."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [
        RerankResult(
            index=index,
            relevance_score=scores[index],
            document=msgspec.UNSET if texts is None else RerankDocument(text=texts[index]),
        )
        for index in order[: top_n or None]
    ]


def score_data(scores: Sequence[float]) -> list[Score]:
    """In the order of the pairs."""
    return [Score(index=index, score=score) for index, score in enumerate(scores)]


async def _sliced(vectors: Sequence[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    size = 0
    for index, vector in enumerate(vectors):
        yield index, vector
        size += len(vector)
        if size >= _SLICE_BYTES:
            size = 0
            await asyncio.sleep(0)


def _numbers(vector: bytes) -> list[float]:
    # "f" has the machine's order, which is little-endian wherever this engine runs.
    numbers: list[Any] = memoryview(vector).cast("f").tolist()
    return numbers


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode("ascii")
