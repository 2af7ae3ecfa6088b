# mypy: disable-error-code="no-untyped-def"
"""Triton kernel that turns a row's top_k and top_p into a pivot. See quire_kernels.sampling for the meaning of each cut.

    pivots      [R] int32   order key: tokens above it stay
    last_ties   [R] int32   of those equal to it, ids up to this one stay
    tops        [R, S] float32   largest scaled logit of each split of the row

Nothing is sorted. The row's candidates (gpu/candidates.py) are held in registers, and the pivot, the smallest value that stays, is found by
bisection over the order-preserving integer image of float32. Where the candidates are more than ROOM, as with a flat distribution and
a top_p near 1, each step of the bisection reads the row.

Probability sums are float32 here and float64 in the reference: a token whose cumulative probability lies within about 1e-6 of top_p may
fall on the other side.

Grid (R,).
"""

import triton
import triton.language as tl

from quire_kernels.gpu.candidates import (
    BINS_PER_UNIT,
    NUM_BINS,
    bin_counts,
    collect,
    last_bin_needed,
    order_key,
    scaled_tile,
    value_of_key,
)


@triton.jit
def _count_and_mass(logits, held, pivot, largest, vocab_size, temperature, BLOCK: tl.constexpr, IS_HELD: tl.constexpr):
    """How many tokens have a key of at least the pivot, and their weights' sum, the largest weighing 1. `held`: what else is -inf."""
    count = 0
    mass = 0.0
    if IS_HELD:
        is_above = (order_key(held) >= pivot) & (held > float("-inf"))
        count += tl.sum(is_above.to(tl.int32))
        mass += tl.sum(tl.where(is_above, tl.exp(held - largest), 0.0))
    else:
        for start in range(0, vocab_size, BLOCK):
            i, value = scaled_tile(logits, start, vocab_size, temperature, BLOCK)
            is_above = (order_key(value) >= pivot) & (i < vocab_size)
            count += tl.sum(is_above.to(tl.int32))
            mass += tl.sum(tl.where(is_above, tl.exp(value - largest), 0.0))
    return count, mass


@triton.jit
def _midpoint(low, high):
    """Of two int32, rounded up, without overflow."""
    return ((low.to(tl.int64) + high.to(tl.int64) + 1) >> 1).to(tl.int32)


@triton.jit
def _find_pivot(
    logits,
    held,
    lowest,
    top_k,
    top_p,
    total,
    largest,
    vocab_size,
    temperature,
    BLOCK: tl.constexpr,
    IS_HELD: tl.constexpr,
):
    """(key, ties): tokens above the key stay, and the first `ties` of those equal to it. No survivor is below `lowest`."""
    low = lowest
    ties = vocab_size
    if (top_k > 0) & (top_k < vocab_size):
        high = order_key(largest)
        while low < high:
            middle = _midpoint(low, high)
            count, mass = _count_and_mass(logits, held, middle, largest, vocab_size, temperature, BLOCK, IS_HELD)
            if count >= top_k:
                low = middle
            else:
                high = middle - 1
        count, mass = _count_and_mass(logits, held, low + 1, largest, vocab_size, temperature, BLOCK, IS_HELD)
        ties = top_k - count
        total = mass + ties.to(tl.float32) * tl.exp(value_of_key(low) - largest)
    if top_p < 1.0:
        needed = top_p * total
        floor = low
        high = order_key(largest)
        while low < high:
            middle = _midpoint(low, high)
            count, mass = _count_and_mass(logits, held, middle, largest, vocab_size, temperature, BLOCK, IS_HELD)
            if mass >= needed:
                low = middle
            else:
                high = middle - 1
        count, mass = _count_and_mass(logits, held, low + 1, largest, vocab_size, temperature, BLOCK, IS_HELD)
        # Of equals, the j-th (from 0) stays while the mass before it, mass + j * weight, is short of what is needed.
        weight = tl.exp(value_of_key(low) - largest)
        wanted = tl.ceil(tl.maximum((needed - mass) / tl.maximum(weight, 1e-37), 1.0))
        wanted = tl.minimum(wanted, vocab_size * 1.0).to(tl.int32)
        ties = tl.where(low == floor, tl.minimum(wanted, ties), wanted)
    return low, ties


# See gpu/sampling.py.
@triton.jit(do_not_specialize_on_alignment=["temperature", "top_k", "top_p"])
def pivot_kernel(
    logits,
    temperature,
    top_k,
    top_p,
    tops,
    pivots,
    last_ties,
    candidates,
    candidate_ids,
    stride_r,
    vocab_size,
    num_splits,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ROOM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride_r
    heat = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    cuts_by_rank = (k > 0) & (k < vocab_size)
    pivot = order_key(tl.full((), float("-inf"), tl.float32))
    last_tie = vocab_size
    if (heat != 0.0) & (cuts_by_rank | (p < 1.0)):
        split = tl.arange(0, BLOCK_S)
        largest = tl.max(tl.load(tops + row * num_splits + split, mask=split < num_splits, other=float("-inf")))
        counts, total = bin_counts(logits, largest, vocab_size, heat, BLOCK)
        # A bin's tokens weigh at least what they would at its far end; the margin covers the rounding of sums.
        far_end = (tl.arange(0, NUM_BINS) + 1).to(tl.float32) / BINS_PER_UNIT
        least_mass = tl.cumsum(counts.to(tl.float32) * tl.exp(-far_end))
        is_enough = tl.where(cuts_by_rank, tl.cumsum(counts) >= k, least_mass >= p * total * 1.001)
        last_bin, num_candidates = last_bin_needed(counts, is_enough, ROOM)
        if last_bin >= 0:
            values = candidates + row * ROOM
            ids = candidate_ids + row * ROOM
            collect(logits, values, ids, last_bin, largest, vocab_size, heat, BLOCK)
            lane = tl.arange(0, ROOM)
            is_held = lane < num_candidates
            held = tl.load(values + lane, mask=is_held, other=float("-inf"))
            lowest = order_key(tl.min(tl.where(is_held, held, largest)))
            pivot, ties = _find_pivot(logits, held, lowest, k, p, total, largest, vocab_size, heat, BLOCK, True)
            is_tie = (is_held & (order_key(held) == pivot)).to(tl.int32)
            stays = (is_tie == 1) & (tl.cumsum(is_tie) <= ties)
            last_tie = tl.max(tl.where(stays, tl.load(ids + lane, mask=is_held, other=-1), -1))
        else:
            nothing = tl.full((1,), float("-inf"), tl.float32)
            pivot, ties = _find_pivot(logits, nothing, pivot, k, p, total, largest, vocab_size, heat, BLOCK, False)
            last_tie = -1
            ties_seen = 0
            for start in range(0, vocab_size, BLOCK):
                i, value = scaled_tile(logits, start, vocab_size, heat, BLOCK)
                is_tie = ((order_key(value) == pivot) & (i < vocab_size)).to(tl.int32)
                stays = (is_tie == 1) & (ties_seen + tl.cumsum(is_tie) <= ties)
                last_tie = tl.maximum(last_tie, tl.max(tl.where(stays, i, -1)))
                ties_seen += tl.sum(is_tie)
    tl.store(pivots + row, pivot)
    tl.store(last_ties + row, last_tie)
