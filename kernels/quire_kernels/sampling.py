"""Pick the next token of each row: a pure function of (logits, parameters, seed, output position).

    logits       [R, V]       float32, bfloat16 or float16; penalties, biases and masks already applied
    temperature  [R] float32  0 picks the largest logit, the lowest id on ties
    top_k        [R] int32    keep the k largest; 0 or less, or V or more, keeps all
    top_p        [R] float32  keep the smallest set of likeliest tokens whose probability reaches it; 1 or more keeps all
    min_p        [R] float32  keep tokens at least this share as likely as the likeliest; 0 or less keeps all
    seeds        [R] int64    the request's seed, 64 bits
    positions    [R] int64    output position: how many tokens the request has produced before this one
    out          [R] int64    token ids
    broken       [R] bool     optional output: rows that hold NaN or +inf, or no finite logit

Logits are cast to float32 and divided by the temperature. Then top_k, then top_p over what is left, renormalised, then min_p; the
likeliest token always stays. Tokens rank by value, then lowest id: that settles ties at every boundary. What is left gets Gumbel
noise (philox.py), and the largest sum wins, the lowest id on ties, which draws from the renormalised distribution.
A row whose logits are all -inf, or hold NaN, gives an arbitrary id in [0, V).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire_kernels.philox import PURPOSE_SAMPLE, gumbel_noise


@dataclass(frozen=True, kw_only=True)
class SamplingTensors:
    """Parameters of R rows, on the logits' device. See the module's table."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    positions: Tensor


def sample_reference(
    logits_RV: Tensor, params: SamplingTensors, purpose: int = PURPOSE_SAMPLE, broken: Tensor | None = None
) -> Tensor:
    """Every row sorted whole, noise for every token."""
    if broken is not None:
        mark_broken(logits_RV.amax(-1), broken)
    return perturbed_logits(logits_RV, params, purpose).argmax(-1)


def argmax_reference(logits_RV: Tensor, broken: Tensor | None = None) -> Tensor:
    """What temperature 0 gives. max also says where, and is four times as fast as argmax on bfloat16; both give the first of equals."""
    values, ids = logits_RV.max(-1)
    if broken is not None:
        mark_broken(values, broken)
    return ids


def mark_broken(largest: Tensor, broken: Tensor) -> None:
    """Given each row's largest logit, or NaN where it holds any: amax and max pass NaN on."""
    torch.ne(largest - largest, 0, out=broken)  # of infinities and NaN the difference is NaN, which equals nothing


def perturbed_logits(logits_RV: Tensor, params: SamplingTensors, purpose: int = PURPOSE_SAMPLE) -> Tensor:
    """[R, V] float32: what the argmax is taken of. -inf where a token was cut; raw logits where the temperature is 0."""
    num_rows, vocab_size = logits_RV.shape
    ids = torch.arange(vocab_size, device=logits_RV.device).expand(num_rows, -1)
    scaled = scale_logits(logits_RV, params.temperature)
    ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(scaled, dtype=torch.bool).scatter_(
        -1, order, kept_of_ranked(ranked, params, vocab_size, token_mass(scaled))
    )
    noise = gumbel_noise(params.seeds[:, None], params.positions[:, None], ids, purpose)
    drawn = torch.where(kept, scaled + noise, float("-inf"))
    return torch.where(params.temperature[:, None] == 0, logits_RV.float(), drawn)


def scale_logits(logits_RV: Tensor, temperature: Tensor) -> Tensor:
    """Float32 logits over the temperature; undivided where it is 0, as the row's winner is the same."""
    divisor = torch.where(temperature == 0, 1.0, temperature)
    return logits_RV.float() / divisor[:, None]


def token_mass(scaled: Tensor) -> Tensor:
    """[R] float64: the sum of a row's weights, the largest token's weight being 1. Weights are float32, sums float64."""
    return torch.exp(scaled - scaled.amax(-1, keepdim=True)).sum(-1, dtype=torch.float64)


def kept_of_ranked(ranked: Tensor, params: SamplingTensors, vocab_size: int, mass: Tensor) -> Tensor:
    """[R, C] bool: which of a row's ranked values survive top_k, top_p and min_p.

    ranked [R, C] holds the C largest of a row's V scaled logits, in order. What lies beyond them must be cut by top_k, or by top_p (the
    caller has checked that the C values reach it). mass [R] is `token_mass`, and read for rows that top_k does not cut.
    """
    rank = torch.arange(ranked.shape[-1], device=ranked.device)
    top_k = torch.where(params.top_k <= 0, vocab_size, params.top_k)[:, None]
    kept = rank < top_k
    weights = torch.exp(ranked - ranked[:, :1]).masked_fill(~kept, 0.0).double()
    reached = weights.cumsum(-1)
    total = torch.where(top_k >= vocab_size, mass[:, None], reached[:, -1:])
    top_p = params.top_p[:, None]
    kept &= (top_p >= 1) | (reached - weights < top_p * total)
    kept &= ranked >= ranked[:, :1] + params.min_p.clamp(min=0)[:, None].log()
    kept[:, 0] = True
    return kept
