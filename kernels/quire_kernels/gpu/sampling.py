# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of sampling. See quire_kernels.sampling for the table and the meaning of each cut.

Grid (R,): one program a row. Nothing is sorted. top_k and top_p each become a pivot: the smallest value that stays, found by
bisection over the order-preserving integer image of float32 (at most 32 passes over the row, from cache), and how many tokens of
exactly that value stay, lowest ids first. The last pass adds noise to what stays and takes the argmax. Rows without cuts take two
passes, greedy rows one.

Probability sums are float32 here and float64 in the reference: a token whose cumulative probability lies within about 1e-6 of top_p may
fall on the other side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.launch_configs import row_config
from quire_kernels.philox import PURPOSE_SAMPLE
from quire_kernels.sampling import SamplingTensors


@triton.jit
def gumbel_from_word(word):
    """Standard Gumbel noise from 32 random bits, as quire_kernels.philox.gumbel_noise defines it, in float32."""
    v = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    rest = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    rest = tl.maximum(rest, 5.9604644775390625e-08)
    # -log(1 - v): a series where 1 - v would lose v's digits, which are those that decide.
    small = v * (1.0 + v * (0.5 + v * (0.3333333333333333 + v * 0.25)))
    return -tl.log(tl.where(v < 0.00390625, small, -tl.log(rest)))


@triton.jit
def _scaled_tile(logits, start, vocab_size, temperature, BLOCK: tl.constexpr):
    i = start + tl.arange(0, BLOCK)
    value = tl.load(logits + i, mask=i < vocab_size, other=float("-inf")).to(tl.float32)
    return i, tl.div_rn(value, temperature) + 0.0  # + 0.0 makes -0.0 equal to 0.0 in the integer image


@triton.jit
def _order_key(value):
    """int32 that orders as the float32 does."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value_of_key(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _count_and_mass(logits, pivot, largest, vocab_size, temperature, BLOCK: tl.constexpr):
    """How many tokens have a key of at least the pivot, and their weights' sum, the largest weighing 1."""
    count = 0
    mass = 0.0
    for start in range(0, vocab_size, BLOCK):
        i, value = _scaled_tile(logits, start, vocab_size, temperature, BLOCK)
        is_above = (_order_key(value) >= pivot) & (i < vocab_size)
        count += tl.sum(is_above.to(tl.int32))
        mass += tl.sum(tl.where(is_above, tl.exp(value - largest), 0.0))
    return count, mass


@triton.jit
def _midpoint(low, high):
    """Of two int32, rounded up, without overflow."""
    return ((low.to(tl.int64) + high.to(tl.int64) + 1) >> 1).to(tl.int32)


@triton.jit
def _find_pivot(logits, top_k, top_p, largest, vocab_size, temperature, BLOCK: tl.constexpr):
    """(key, ties): tokens above the key stay, and the first `ties` of those equal to it."""
    low = _order_key(tl.full((), float("-inf"), tl.float32))
    ties = vocab_size
    total = 0.0
    if (top_k > 0) & (top_k < vocab_size):
        high = _order_key(largest)
        while low < high:
            middle = _midpoint(low, high)
            count, mass = _count_and_mass(logits, middle, largest, vocab_size, temperature, BLOCK)
            if count >= top_k:
                low = middle
            else:
                high = middle - 1
        count, mass = _count_and_mass(logits, low + 1, largest, vocab_size, temperature, BLOCK)
        ties = top_k - count
        total = mass + ties.to(tl.float32) * tl.exp(_value_of_key(low) - largest)
    else:
        count, mass = _count_and_mass(logits, low, largest, vocab_size, temperature, BLOCK)
        total = mass
    if top_p < 1.0:
        needed = top_p * total
        floor = low
        high = _order_key(largest)
        while low < high:
            middle = _midpoint(low, high)
            count, mass = _count_and_mass(logits, middle, largest, vocab_size, temperature, BLOCK)
            if mass >= needed:
                low = middle
            else:
                high = middle - 1
        count, mass = _count_and_mass(logits, low + 1, largest, vocab_size, temperature, BLOCK)
        # Of equals, the j-th (from 0) stays while the mass before it, mass + j * weight, is short of what is needed.
        weight = tl.exp(_value_of_key(low) - largest)
        wanted = tl.ceil(tl.maximum((needed - mass) / tl.maximum(weight, 1e-37), 1.0))
        wanted = tl.minimum(wanted, vocab_size * 1.0).to(tl.int32)
        ties = tl.where(low == floor, tl.minimum(wanted, ties), wanted)
    return low, ties


@triton.jit
def sample_kernel(
    logits,
    temperature,
    top_k,
    top_p,
    log_min_p,
    seeds,
    positions,
    out,
    stride_r,
    vocab_size,
    PURPOSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride_r
    heat = tl.load(temperature + row)
    is_drawn = heat != 0.0
    heat = tl.where(is_drawn, heat, 1.0)

    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_id = tl.full((BLOCK,), 0, tl.int32)
    for start in range(0, vocab_size, BLOCK):
        i, value = _scaled_tile(logits, start, vocab_size, heat, BLOCK)
        is_better = value > best
        best_id = tl.where(is_better, i, best_id)
        best = tl.where(is_better, value, best)
    largest = tl.max(best)

    if is_drawn:
        k = tl.load(top_k + row)
        p = tl.load(top_p + row)
        pivot = _order_key(tl.full((), float("-inf"), tl.float32))
        ties = vocab_size
        if ((k > 0) & (k < vocab_size)) | (p < 1.0):
            pivot, ties = _find_pivot(logits, k, p, largest, vocab_size, heat, BLOCK)
        lowest = largest + tl.load(log_min_p + row)
        seed = tl.load(seeds + row)
        position = tl.load(positions + row).to(tl.uint32, bitcast=False)
        ties_seen = 0
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        for start in range(0, vocab_size, BLOCK):
            i, value = _scaled_tile(logits, start, vocab_size, heat, BLOCK)
            key = _order_key(value)
            is_tie = ((key == pivot) & (i < vocab_size)).to(tl.int32)
            tie_rank = ties_seen + tl.cumsum(is_tie) - is_tie
            ties_seen += tl.sum(is_tie)
            stays = ((key > pivot) | ((is_tie == 1) & (tie_rank < ties))) & (value >= lowest) & (i < vocab_size)
            zero = i.to(tl.uint32) * 0
            word, _, _, _ = tl.philox(seed, i.to(tl.uint32), zero + position, zero + PURPOSE, zero)
            perturbed = tl.where(stays, value + gumbel_from_word(word), float("-inf"))
            is_better = perturbed > best
            best_id = tl.where(is_better, i, best_id)
            best = tl.where(is_better, perturbed, best)
        largest = tl.max(best)

    winner = tl.min(tl.where(best == largest, best_id, vocab_size))
    tl.store(out + row, tl.minimum(winner, vocab_size - 1).to(tl.int64))


def sample_triton(logits_RV: Tensor, params: SamplingTensors, purpose: int = PURPOSE_SAMPLE) -> Tensor:
    """See quire_kernels.sampling."""
    assert logits_RV.stride(1) == 1
    num_rows, vocab_size = logits_RV.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits_RV.device)
    if num_rows:
        config = row_config("vocabulary")
        sample_kernel[(num_rows,)](
            logits_RV,
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p.clamp(min=0).log(),
            params.seeds,
            params.positions,
            out,
            logits_RV.stride(0),
            vocab_size,
            PURPOSE=purpose,
            BLOCK=min(config.block, triton.next_power_of_2(vocab_size)),
            num_warps=config.num_warps,
        )
    return out
