"""Log probabilities of the chosen and of the likeliest tokens, from raw logits.

    logits    [R, V]           raw: before penalties, biases and temperature
    chosen    [R] int64        the token of each row
    k         int >= 0         how many of the likeliest; clamped to V

    returns   TopLogprobs: chosen logprob [R], rank [R] (1 is the likeliest; ties share the better rank), ids [R, k], logprobs [R, k]

Computed in float32. Tokens rank by value, then lowest id.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TopLogprobs:
    """See the module's table."""

    chosen_logprobs: Tensor
    chosen_ranks: Tensor
    ids: Tensor
    logprobs: Tensor


def top_logprobs_reference(logits_RV: Tensor, chosen: Tensor, k: int) -> TopLogprobs:
    """Every row sorted whole."""
    logits = logits_RV.float()
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    return logprobs_of(logits, chosen, values[:, :k], ids[:, :k])


def logprobs_of(logits: Tensor, chosen: Tensor, values: Tensor, ids: Tensor) -> TopLogprobs:
    """The result, given each row's k largest float32 logits and their ids."""
    normaliser = logits.logsumexp(-1, keepdim=True)
    picked = logits.gather(-1, chosen[:, None])
    return TopLogprobs(
        chosen_logprobs=(picked - normaliser).squeeze(-1),
        chosen_ranks=(logits > picked).sum(-1) + 1,
        ids=ids,
        logprobs=values - normaliser,
    )


def largest_by_value_then_id(values_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values, ids) [R, k], largest first, the lowest id first among equals; torch.topk leaves ties open.

    Takes torch.topk's candidates, orders equals among them, and sorts a row whole only if equals straddle the cut.
    """
    k = min(k, values_RV.shape[-1])
    values, ids = values_RV.topk(k, dim=-1)
    ids, by_id = ids.sort(dim=-1)
    values, by_value = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_value)
    straddles = (values_RV >= values[:, -1:]).sum(-1) > k if k else values_RV.new_zeros(0, dtype=torch.bool)
    for row in straddles.nonzero().flatten().tolist():
        row_values, row_ids = values_RV[row].sort(descending=True, stable=True)
        values[row], ids[row] = row_values[:k], row_ids[:k]
    return values, ids
