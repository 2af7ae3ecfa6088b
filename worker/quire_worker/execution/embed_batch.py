"""Inputs of a batch laid side by side without padding, and vectors on their way out.

    inputs, any lengths  ── sorted by length ──>  [a a b b b c c c d d d ...]  T tokens, one run for each length

Derived on the host by numpy, like a step's inputs. Must not know models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire_worker.embedding import EmbedInput
from quire_worker.models.encoder import Run
from quire_worker.models.pooling import finish

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Packed inputs; B of them, T tokens."""

    order: tuple[int, ...]
    """Which input is the batch's first, second, ..."""
    lengths: Ints
    """[B], ascending."""
    starts: Ints
    """[B]: each one's first token."""
    token_ids: Ints
    """[T]."""
    positions: Ints
    """[T]: inside the input, from 0."""
    runs: tuple[Run, ...]


def pack_inputs(inputs: Sequence[EmbedInput]) -> Batch:
    """At least one input, none of them empty."""
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i].token_ids))
    lengths = np.fromiter((len(inputs[i].token_ids) for i in order), np.int64, len(order))
    ends = lengths.cumsum()
    starts = ends - lengths
    num_tokens = int(ends[-1])
    return Batch(
        order=tuple(order),
        lengths=lengths,
        starts=starts,
        token_ids=np.fromiter(chain.from_iterable(inputs[i].token_ids for i in order), np.int64, num_tokens),
        positions=np.arange(num_tokens) - np.repeat(starts, lengths),
        runs=_runs(lengths.tolist()),
    )


def token_types(inputs: Sequence[EmbedInput], batch: Batch) -> Ints | None:
    """[T]: 1 from where a pair's second text begins; None: all are 0."""
    if all(item.second_start is None for item in inputs):
        return None
    seconds = [inputs[i].second_start for i in batch.order]
    firsts = np.where([s is None for s in seconds], batch.lengths, [s or 0 for s in seconds])
    types: Ints = (batch.positions >= np.repeat(firsts, batch.lengths)).astype(np.int64)
    return types


def finished(vectors_BE: Tensor, inputs: Sequence[EmbedInput], batch: Batch, *, normalises: bool) -> list[bytes | None]:
    """Each input's vector as it asked for it, little-endian float32, in the order of the inputs; None if it is not finite."""
    wishes = [_wish(inputs[i], normalises) for i in batch.order]
    found: list[bytes | None] = [None] * len(inputs)
    for wish in dict.fromkeys(wishes):
        places = [place for place, other in enumerate(wishes) if other == wish]
        chosen = vectors_BE if len(places) == len(wishes) else vectors_BE[places]
        rows = finish(chosen, dimensions=wish[0], normalises=wish[1]).cpu()
        for place, row, is_finite in zip(places, _as_bytes(rows), rows.isfinite().all(1).tolist(), strict=True):
            found[batch.order[place]] = row if is_finite else None
    return found


def _wish(item: EmbedInput, normalises: bool) -> tuple[int | None, bool]:
    return item.dimensions, normalises if item.normalises is None else item.normalises


def _as_bytes(rows: Tensor) -> list[bytes]:
    array = np.ascontiguousarray(rows.to(torch.float32).numpy(), dtype="<f4")
    return [row.tobytes() for row in array]


def _runs(lengths: list[int]) -> tuple[Run, ...]:
    runs = []
    first = 0
    for length, group in groupby(lengths):
        count = len(list(group))
        runs.append(Run(first_token=first, num_sequences=count, length=length))
        first += count * length
    return tuple(runs)
