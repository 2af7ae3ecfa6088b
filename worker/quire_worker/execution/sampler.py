"""From logits to tokens: bias, penalties, forbidden tokens, then the draw, row by row independent of the company.

    logits [S, V]   in the model's dtype, S sampled rows

Order, as vLLM has it: logit_bias, repetition, frequency and presence penalties, then tokens that may not come (ending tokens before
min_tokens, what allowed_token_ids and bad_words rule out, grammar masks), then temperature, top_k, top_p, min_p and the draw.
Log-probabilities are those of the raw logits.
Steps that no row asks for are skipped: a batch of greedy rows is one argmax, which a recorded step does by itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire_kernels.logprobs import TopLogprobs
from quire_kernels.ops import Ops
from quire_worker.execution.prepared_step import Chosen, SampledRows
from quire_worker.execution.rows import Ints, Rows, upload
from quire_worker.execution.sampling_rows import SamplingRows
from quire_worker.plan import TokenMasks


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedLogprobs:
    """Of those sampled rows that ask for them."""

    index: Ints
    """Into the sampled rows."""
    num_top: Ints
    """Parallel to index."""
    values: TopLogprobs
    """Parallel to index, as many as the largest of num_top."""
    named_ids: dict[int, tuple[int, ...]]
    """By sampled row, of those that name the tokens they want, in place of the likeliest: which."""
    named: Tensor | None
    """[len(named_ids), MAX_LOGPROB_TOKEN_IDS]: their log-probabilities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """A step's tokens, still on the device."""

    token_ids: Tensor
    """[S] int64."""
    logprobs: WantedLogprobs | None
    broken: Tensor | None = None
    """[S] bool: rows whose token means nothing, for there was no finite logit, or NaN. None: none."""
    without_tokens: Tensor | None = None
    """[S] bool: of the broken ones, those where bias, masks and constraints left no token."""


NOTHING = Sampled(token_ids=torch.zeros(0, dtype=torch.int64), logprobs=None)


class Sampler:
    """Chooses tokens for the rows of one runner. Draws depend on (logits, parameters, seed, output position) alone."""

    def __init__(self, rows: Rows, params: SamplingRows, ops: Ops) -> None:
        self._rows = rows
        self._params = params
        self._ops = ops

    def sample(self, logits_SV: Tensor, sampled: SampledRows, masks: TokenMasks | None) -> Sampled:
        """One token for each sampled row; appends them to the rows and counts them for penalties."""
        shaped = self._shaped(logits_SV, sampled, masks)
        broken = torch.empty(logits_SV.shape[0], dtype=torch.bool, device=logits_SV.device)
        token_ids = self._draw(shaped, sampled, broken)
        logprobs = self._logprobs(logits_SV, token_ids, sampled)
        slots = self._params.penalties.host_slots[sampled.rows]
        if (slots >= 0).any():
            counts = self._params.penalties.output_counts
            self._ops.count_tokens(counts, self._params.penalty_slots_of(sampled), token_ids)
        self._rows.append(sampled.rows, sampled.rows_on_device, token_ids)
        if self._params.arrays is not None and not broken.numpy().any():
            return Sampled(token_ids=token_ids, logprobs=logprobs)
        # On a device nobody knows yet whether any row is.
        without_tokens = None if shaped is logits_SV else shaped.amax(-1) == float("-inf")
        return Sampled(token_ids=token_ids, logprobs=logprobs, broken=broken, without_tokens=without_tokens)

    def accept(self, chosen: Chosen, sampled: SampledRows, masks: TokenMasks | None) -> Sampled:
        """What the step chose by itself: its rows ask for nothing else (SamplingRows.are_plain)."""
        assert not masks, "the plan did not say that its rows have masks"
        self._rows.host_num_tokens[sampled.rows] += 1
        return Sampled(token_ids=chosen.token_ids, logprobs=None, broken=chosen.broken)

    def _shaped(self, logits_SV: Tensor, sampled: SampledRows, masks: TokenMasks | None) -> Tensor:
        """The logits to draw from: the raw ones, untouched, if no row changes any."""
        params, rows = self._params, sampled.rows
        slots = params.penalties.host_slots[rows]
        has_penalties = bool((slots >= 0).any())
        bound = self._rows.host_num_tokens[rows] < params.host_free_from[rows]
        biased = [i for i, row in enumerate(rows.tolist()) if row in params.biases] if params.biases else []
        is_constrained = params.constraints.bind(rows)
        if not (has_penalties or biased or bound.any() or masks or is_constrained):
            return logits_SV
        logits = logits_SV.to(torch.float32, copy=True)
        if biased:
            self._apply_biases(logits, rows, biased)
        if has_penalties:
            self._apply_penalties(logits, sampled)
        if bound.any():
            self._forbid_endings(logits, rows, np.flatnonzero(bound).tolist())
        if is_constrained:
            params.constraints.apply(logits, sampled, self._rows, params.integers[1], self._ops)
        if masks:
            self._apply_masks(logits, rows, masks)
        return logits

    def _apply_biases(self, logits_SV: Tensor, rows: Ints, biased: list[int]) -> None:
        found = [self._params.biases[int(rows[i])] for i in biased]
        ids = torch.cat([ids for ids, _ in found])
        values = torch.cat([values for _, values in found])
        index = np.repeat(np.array(biased, np.int64), [ids.shape[0] for ids, _ in found])
        self._ops.apply_bias(logits_SV, upload(index, logits_SV.device), ids, values)

    def _apply_penalties(self, logits_SV: Tensor, sampled: SampledRows) -> None:
        tables, slots = self._params.penalties, self._params.penalty_slots_of(sampled)
        repetition, frequency, presence = self._params.floats[3:].index_select(1, sampled.rows_on_device).unbind()
        self._ops.apply_penalties(
            logits_SV, slots, tables.prompt_mask, tables.output_counts, repetition, frequency, presence
        )

    def _forbid_endings(self, logits_SV: Tensor, rows: Ints, bound: list[int]) -> None:
        found = [self._params.ending_ids[int(rows[i])] for i in bound]
        ids = torch.cat(found)
        index = np.repeat(np.array(bound, np.int64), [len(ending) for ending in found])
        values = torch.full(ids.shape, float("-inf"), device=ids.device)
        self._ops.apply_bias(logits_SV, upload(index, logits_SV.device), ids, values)

    def _apply_masks(self, logits_SV: Tensor, rows: Ints, masks: TokenMasks) -> None:
        place = {row: i for i, row in enumerate(rows.tolist())}
        kept = [i for i, row in enumerate(masks.rows) if row in place]
        if not kept:
            return
        words = np.frombuffer(masks.bits, "<i4").reshape(len(masks.rows), -1)
        words = np.ascontiguousarray(words[kept, : -(-logits_SV.shape[1] // 32)])
        index = np.array([place[masks.rows[i]] for i in kept], np.int64)
        self._ops.apply_bitmask(logits_SV, upload(index, logits_SV.device), upload(words, logits_SV.device))

    def _draw(self, logits_SV: Tensor, sampled: SampledRows, broken: Tensor) -> Tensor:
        if not self._params.host_is_random[sampled.rows].any():
            return self._ops.argmax(logits_SV, broken=broken)
        return self._ops.sample(logits_SV, self._params.tensors_of(sampled, self._rows), broken=broken)

    def _logprobs(self, logits_SV: Tensor, token_ids: Tensor, sampled: SampledRows) -> WantedLogprobs | None:
        num_top = self._params.host_num_logprobs[sampled.rows]
        index = np.flatnonzero(num_top >= 0)
        if not len(index):
            return None
        picked = upload(index, logits_SV.device)
        values = self._ops.top_logprobs(logits_SV[picked], token_ids[picked], int(num_top.max()))
        named = [(i, row) for i, row in enumerate(sampled.rows.tolist()) if row in self._params.named_ids]
        return WantedLogprobs(
            index=index,
            num_top=num_top[index],
            values=values,
            named_ids={i: self._params.named_ids[row][0] for i, row in named},
            named=self._named(logits_SV, named) if named else None,
        )

    def _named(self, logits_SV: Tensor, named: list[tuple[int, int]]) -> Tensor:
        """Log-probabilities of the tokens that rows name; (place among the sampled ones, row) of each."""
        ids = torch.stack([self._params.named_ids[row][1] for _, row in named])
        logits = logits_SV[upload(np.array([i for i, _ in named], np.int64), logits_SV.device)].float()
        return logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
