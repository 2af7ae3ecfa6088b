"""Answers of the routes in `embedding_requests`. All fields are always written but those of type UnsetType, left out when unset."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all inputs, special ones included."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One input's vector."""

    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""
    object: Literal["embedding"] = "embedding"


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/embeddings."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class RerankDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document that was sent."""

    text: str


class RerankResult(msgspec.Struct, frozen=True, kw_only=True):
    """One document's place."""

    index: int
    """Of the document in the request."""
    relevance_score: float
    document: RerankDocument | UnsetType = UNSET


class RerankResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/rerank, the best document first."""

    id: str
    model: str
    usage: EmbeddingUsage
    results: list[RerankResult]


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One pair's score."""

    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/score."""

    id: str
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"
