"""What one request for embeddings or scores asks of the engine, and what the engine needs of whoever computes it.

Shared by the API process, the engine and the embedder, so it holds plain values only: no torch, no text, no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec


class Embed(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="embed"):
    """Make one vector of each input; what comes back is a ChoiceOutput for each, whose `choice` is the input's index.

    Of a model that scores pairs, an input is a pair and its vector the one score.
    """

    request_id: str
    inputs: list[list[int]]
    """Token ids, special tokens included."""
    second_starts: list[int] = []
    """Of pairs, parallel to inputs: where the second text begins, for models that tell the two apart. Empty: no pairs."""
    dimensions: int | None = None
    """Cut vectors to so many numbers; None: all."""
    normalises: bool | None = None
    """Scale vectors to length 1; None: as the model says."""
    timeout_s: float | None = None
    """Seconds from submission after which the request is ended wherever it is, with finish reason "deadline"."""
    queue_timeout_s: float | None = None
    """Seconds from submission after which it is ended if none of its inputs has been in a batch, with finish reason "queue_timeout"."""

    @property
    def n(self) -> int:
        """Outputs to come."""
        return len(self.inputs)


class EmbeddingInfo(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a model makes of an input."""

    task: str
    """"embed": a vector. "score": of a pair, one number."""
    dimensions: int
    """Numbers of a vector; 1 for a score."""
    can_cut: bool = False
    """Shorter vectors may be asked for."""
    cuts: list[int] = []
    """The sizes to which vectors may be cut; empty with can_cut: any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedInput:
    """One input of a batch."""

    token_ids: Sequence[int]
    second_start: int | None = None
    dimensions: int | None = None
    normalises: bool | None = None


class Embedder(Protocol):
    """Computes batches."""

    def embed(self, inputs: Sequence[EmbedInput]) -> list[bytes | None]:
        """Each input's vector as little-endian float32, None where it is not finite. Raises what the step raised."""
        ...

    def close(self) -> None: ...
