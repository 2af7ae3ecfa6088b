"""Log-probabilities of a prompt's own tokens: which of a step's logits are wanted for them, and what is made of those.

    position      0 ... first ............ stop ... num_prompt - 1
    logits        │       of these positions │       each is the guess of the token after it; the last one's is the first output token's

In a step that computes such positions the last layer attends for all tokens of their rows, and the output head is applied to a few of
them at a time, each few reduced to log-probabilities at once: the logits of a long prompt over a large vocabulary are gigabytes.
Steps without them take the usual road.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire_kernels.logprobs import TopLogprobs
from quire_kernels.ops import Ops
from quire_worker.execution.rows import Ints
from quire_worker.plan import NewRow
from quire_worker.request import PromptLogprobs

MAX_LOGITS = 1 << 24
"""Of prompt tokens, in memory at once (64 MiB in float32), but at least those of one token."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive scored tokens of one row."""

    row: int
    first: int
    """Position of the first token that is guessed."""
    count: int
    num_top: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptScores:
    """Of P tokens, on the device."""

    spans: list[Span]
    values: TopLogprobs
    """The spans', one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedQueries:
    """What the last layer attends for in such a step: Q of its rows, N of its tokens."""

    picked: Ints
    """[Q], places of the rows in the step."""
    starts: npt.NDArray[np.int32]
    """[Q + 1]: where each one's tokens begin among the N."""
    tokens: Ints
    """[N], places in the step."""
    sampled: Ints
    """[S], places among the N."""
    scored: Ints
    """[P], places among the N."""
    target_rows: Ints
    """[P]: row and position of the tokens that are guessed."""
    target_positions: Ints
    spans: list[Span]


class PromptScorer:
    """Knows which rows want their prompts scored."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[int, int]] = {}
        """By row: tokens of the prompt, and how many of the likeliest."""

    def set_up(self, new: NewRow) -> None:
        """A request enters its row; `forget` was called for the last one."""
        if new.sampling.prompt_logprobs is not None:
            self._asked[new.row] = (new.num_prompt_tokens, new.sampling.prompt_logprobs)

    def forget(self, row: int) -> None:
        """Its request has left."""
        self._asked.pop(row, None)

    def wanted(
        self, row_ids: Ints, starts: Ints, counts: Ints, is_sampled: npt.NDArray[np.bool_]
    ) -> WantedQueries | None:
        """Of a step that computes `counts` tokens of each row from position `starts` on; None if it scores none."""
        if not self._asked:
            return None
        spans: list[Span] = []
        places: list[int] = []
        for place, (row, start, count) in enumerate(
            zip(row_ids.tolist(), starts.tolist(), counts.tolist(), strict=True)
        ):
            num_prompt, num_top = self._asked.get(row, (0, 0))
            num_scored = min(start + count, num_prompt - 1) - start
            if num_scored > 0:
                spans.append(Span(row, start + 1, num_scored, num_top))
                places.append(place)
        return _queries(spans, places, counts, is_sampled) if spans else None


def _queries(spans: list[Span], places: list[int], counts: Ints, is_sampled: npt.NDArray[np.bool_]) -> WantedQueries:
    """All tokens of a scored row, as queries of a row lie together; the last one of any other that is sampled."""
    widths = is_sampled.astype(np.int64)
    widths[places] = counts[places]
    picked = np.flatnonzero(widths)
    starts = np.concatenate((np.zeros(1, np.int64), widths[picked].cumsum()))
    last_tokens = counts.cumsum()[picked] - 1
    tokens = np.arange(starts[-1]) + np.repeat(last_tokens + 1 - starts[1:], widths[picked])
    first_of = dict(zip(picked.tolist(), starts.tolist(), strict=False))
    return WantedQueries(
        picked=picked,
        starts=starts.astype(np.int32),
        tokens=tokens,
        sampled=starts[1:][is_sampled[picked]] - 1,
        scored=_joined([first_of[place] + np.arange(span.count) for span, place in zip(spans, places, strict=True)]),
        target_rows=np.repeat(np.array([span.row for span in spans]), [span.count for span in spans]),
        target_positions=_joined([span.first + np.arange(span.count) for span in spans]),
        spans=spans,
    )


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts).astype(np.int64)


class Head(Protocol):
    """The model's end."""

    def logits(self, hidden_SE: Tensor) -> Tensor: ...


def score(
    head: Head,
    ops: Ops,
    hidden_NE: Tensor,
    scored: Tensor,
    targets: Tensor,
    spans: list[Span],
    vocab_size: int,
    *,
    max_logits: int = MAX_LOGITS,
) -> PromptScores:
    """scored [P] int64: rows of hidden [N, E]; targets [P] int64: the tokens that came after them. Waits for nothing."""
    num_top = max(span.num_top for span in spans)
    size = max(1, max_logits // vocab_size)
    parts = [
        ops.top_logprobs(head.logits(hidden_NE.index_select(0, places)), chosen, num_top)
        for places, chosen in zip(torch.split(scored, size), torch.split(targets, size), strict=True)
    ]
    values = TopLogprobs(
        chosen_logprobs=torch.cat([part.chosen_logprobs for part in parts]),
        chosen_ranks=torch.cat([part.chosen_ranks for part in parts]),
        ids=torch.cat([part.ids for part in parts]),
        logprobs=torch.cat([part.logprobs for part in parts]),
    )
    return PromptScores(spans=spans, values=values)


def pack_scores(spans: list[Span], columns: tuple[Tensor, ...]) -> dict[int, PromptLogprobs]:
    """By row; `columns` are those of PromptScores.values on the host: chosen logprobs, chosen ranks, top ids, top logprobs."""
    logprobs, ranks, ids, top_logprobs = (tensor.numpy() for tensor in columns)
    packed = {}
    start = 0
    for span in spans:
        found = slice(start, start + span.count)
        start += span.count
        num_top = min(span.num_top, ids.shape[1])
        packed[span.row] = PromptLogprobs(
            first=span.first,
            num_top=num_top,
            logprobs=logprobs[found].astype("<f4").tobytes(),
            ranks=ranks[found].astype("<i4").tobytes(),
            top_ids=ids[found, :num_top].astype("<i4").tobytes(),
            top_logprobs=top_logprobs[found, :num_top].astype("<f4").tobytes(),
        )
    return packed


def rows_with_nan(spans: list[Span], chosen_logprobs: Tensor) -> list[int]:
    """Rows with a token whose log-probability is none; chosen_logprobs [P] on the host."""
    is_nan = np.isnan(chosen_logprobs.numpy())
    ends = np.cumsum([span.count for span in spans]).tolist()
    return [span.row for span, end in zip(spans, ends, strict=True) if is_nan[end - span.count : end].any()]
