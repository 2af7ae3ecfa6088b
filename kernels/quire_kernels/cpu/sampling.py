"""CPU path of sampling: noise only for tokens that can still win. See quire_kernels.sampling for the table.

Greedy rows are an argmax. Rows with top_k or top_p rank only as many candidates as they need. Noise is bounded, so in the other
rows a token more than GUMBEL_MAX - GUMBEL_MIN below the largest logit can never win and draws none.
"""

import torch
from torch import Tensor

from quire_kernels.cpu.philox import gumbel_noise_cpu
from quire_kernels.logprobs import largest_by_value_then_id
from quire_kernels.philox import GUMBEL_MAX, GUMBEL_MIN, PURPOSE_SAMPLE
from quire_kernels.sampling import SamplingTensors, kept_of_ranked, mark_broken, scale_logits, token_mass

FIRST_CANDIDATES = 64
"""Tokens ranked at first for top_p; four times as many each time they do not reach it."""


def sample_cpu(
    logits_RV: Tensor, params: SamplingTensors, purpose: int = PURPOSE_SAMPLE, broken: Tensor | None = None
) -> Tensor:
    """The same tokens as the reference."""
    if broken is not None:
        mark_broken(logits_RV.amax(-1), broken)
    vocab_size = logits_RV.shape[1]
    is_drawn = params.temperature != 0
    is_cut = ((params.top_k > 0) & (params.top_k < vocab_size)) | (params.top_p < 1)
    out = torch.empty(logits_RV.shape[0], dtype=torch.int64)
    for rows, draw in ((~is_drawn, None), (is_drawn & is_cut, _draw_ranked), (is_drawn & ~is_cut, _draw_unranked)):
        index = rows.nonzero().squeeze(-1)
        if not index.numel():
            continue
        chosen = logits_RV if index.numel() == len(out) else logits_RV.index_select(0, index)
        if draw is None:
            out[index] = chosen.argmax(-1)
        else:
            picked = _select(params, index)
            out[index] = draw(scale_logits(chosen, picked.temperature), picked, purpose)
    return out


def _select(params: SamplingTensors, index: Tensor) -> SamplingTensors:
    return SamplingTensors(
        temperature=params.temperature[index],
        top_k=params.top_k[index],
        top_p=params.top_p[index],
        min_p=params.min_p[index],
        seeds=params.seeds[index],
        positions=params.positions[index],
    )


def _draw_unranked(scaled: Tensor, params: SamplingTensors, purpose: int) -> Tensor:
    """No top_k or top_p: every token within the noise's reach of the largest, and within min_p."""
    largest = scaled.amax(-1, keepdim=True)
    reach = (params.min_p.clamp(min=0).log()[:, None]).clamp(min=GUMBEL_MIN - GUMBEL_MAX - 1e-3)
    rows, ids = (scaled >= largest + reach).nonzero(as_tuple=True)
    noise = gumbel_noise_cpu(params.seeds, params.positions, rows, ids, purpose)
    perturbed = torch.full_like(scaled, float("-inf"))
    perturbed[rows, ids] = scaled[rows, ids] + noise
    return perturbed.argmax(-1)


def _draw_ranked(scaled: Tensor, params: SamplingTensors, purpose: int) -> Tensor:
    """The likeliest tokens ranked, cut, and drawn from."""
    ranked, ids, mass = _ranked_candidates(scaled, params)
    kept = kept_of_ranked(ranked, params, scaled.shape[1], mass)
    rows, columns = kept.nonzero(as_tuple=True)
    noise = gumbel_noise_cpu(params.seeds, params.positions, rows, ids[rows, columns], purpose)
    perturbed = torch.full_like(ranked, float("-inf"))
    perturbed[rows, columns] = ranked[rows, columns] + noise
    is_best = perturbed == perturbed.amax(-1, keepdim=True)
    return torch.where(is_best, ids, scaled.shape[1]).amin(-1).clamp(max=scaled.shape[1] - 1)


def _ranked_candidates(scaled: Tensor, params: SamplingTensors) -> tuple[Tensor, Tensor, Tensor]:
    """(values, ids, mass): enough of each row's largest, all of its top_k or so many that their probability reaches top_p."""
    vocab_size = scaled.shape[1]
    mass = torch.ones(len(scaled), dtype=torch.float64)
    bounded = (params.top_k > 0) & (params.top_k < vocab_size)
    count = max(int(torch.where(bounded, params.top_k, 1).max()), FIRST_CANDIDATES)
    unbounded = (~bounded).nonzero().squeeze(-1)
    if unbounded.numel():
        rows = scaled[unbounded]
        mass[unbounded] = token_mass(rows)
        needed = mass[unbounded] * params.top_p[unbounded]
        weights = torch.exp(rows - rows.amax(-1, keepdim=True))
        while count < vocab_size and bool((_largest_sum(weights, count) <= needed).any()):
            count *= 4
    values, ids = largest_by_value_then_id(scaled, min(count, vocab_size))
    return values, ids, mass


def _largest_sum(weights: Tensor, count: int) -> Tensor:
    return weights.topk(count, sorted=False).values.sum(-1, dtype=torch.float64)
