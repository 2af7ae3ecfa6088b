# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of sampling. See quire_kernels.sampling for the table and the meaning of each cut.

A row is split over S programs, so that few rows use the whole device:

    top_kernel     grid (R, S)   each split's largest scaled logit and its id: the answer of a greedy row
    pivot_kernel   grid (R,)     what top_k and top_p leave (gpu/sampling_pivots.py); launched always, as the host knows no parameters
    draw_kernel    grid (R, S)   each split's best token of what is left, noise added
    choose_kernel  grid (R,)     the best split's

Nothing waits for the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.gpu.candidates import order_key, scaled_tile
from quire_kernels.gpu.sampling_pivots import pivot_kernel
from quire_kernels.launch_configs import row_config
from quire_kernels.philox import PURPOSE_SAMPLE
from quire_kernels.sampling import SamplingTensors, mark_broken

MAX_CANDIDATES = 4096
"""Tokens that the pivot kernel holds in registers."""
TILES_PER_SPLIT = 2


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
def _best_of(best, best_id, vocab_size):
    """(value, id) of the largest of a tile; the lowest id of equals."""
    largest = tl.max(best)
    return largest, tl.min(tl.where(best == largest, best_id, vocab_size))


# Parameters of rows are rows of one gathered table, which begin where the number of rows says: read one by one, they need no alignment.
@triton.jit(do_not_specialize_on_alignment=["temperature"])
def top_kernel(logits, temperature, tops, top_ids, stride_r, vocab_size, BLOCK: tl.constexpr, TILES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_id = tl.full((BLOCK,), 0, tl.int32)
    for tile in tl.static_range(TILES):
        i = (split * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(logits + row * stride_r + i, mask=i < vocab_size, other=float("-inf")).to(tl.float32)
        is_better = value > best
        best_id = tl.where(is_better, i, best_id)
        best = tl.where(is_better, value, best)
    value, token = _best_of(best, best_id, vocab_size)
    # Division rounds without changing order: the largest quotient is that of the largest logit.
    heat = tl.load(temperature + row)
    tl.store(tops + row * tl.num_programs(1) + split, tl.div_rn(value, tl.where(heat != 0.0, heat, 1.0)) + 0.0)
    tl.store(top_ids + row * tl.num_programs(1) + split, token)


@triton.jit(do_not_specialize_on_alignment=["temperature", "min_p", "seeds", "positions"])
def draw_kernel(
    logits,
    temperature,
    min_p,
    seeds,
    positions,
    tops,
    top_ids,
    pivots,
    last_ties,
    draws,
    stride_r,
    vocab_size,
    PURPOSE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Replaces a drawn row's top_ids; `draws` takes the values, and for a greedy row those of `tops`."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    heat = tl.load(temperature + row)
    if heat == 0.0:
        tl.store(draws + row * num_splits + split, tl.load(tops + row * num_splits + split))
    else:
        splits = tl.arange(0, BLOCK_S)
        largest = tl.max(tl.load(tops + row * num_splits + splits, mask=splits < num_splits, other=float("-inf")))
        share = tl.load(min_p + row)
        lowest = tl.where(share > 0.0, largest + tl.log(tl.maximum(share, 1e-37)), float("-inf"))
        pivot = tl.load(pivots + row)
        last_tie = tl.load(last_ties + row)
        seed = tl.load(seeds + row)
        position = tl.load(positions + row).to(tl.uint32, bitcast=False)
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        best_id = tl.full((BLOCK,), 0, tl.int32)
        for tile in tl.static_range(TILES):
            start = (split * TILES + tile) * BLOCK
            i, value = scaled_tile(logits + row * stride_r, start, vocab_size, heat, BLOCK)
            key = order_key(value)
            stays = ((key > pivot) | ((key == pivot) & (i <= last_tie))) & (value >= lowest) & (i < vocab_size)
            # Of a row with cuts most tiles are empty, and noise is most of the work.
            if tl.max(stays.to(tl.int32)) == 1:
                zero = i.to(tl.uint32) * 0
                word, _, _, _ = tl.philox(seed, i.to(tl.uint32), zero + position, zero + PURPOSE, zero)
                perturbed = tl.where(stays, value + gumbel_from_word(word), float("-inf"))
                is_better = perturbed > best
                best_id = tl.where(is_better, i, best_id)
                best = tl.where(is_better, perturbed, best)
        value, token = _best_of(best, best_id, vocab_size)
        tl.store(draws + row * num_splits + split, value)
        tl.store(top_ids + row * num_splits + split, token)


@triton.jit
def choose_kernel(draws, top_ids, out, num_splits, vocab_size, BLOCK_S: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    inside = split < num_splits
    value = tl.load(draws + row * num_splits + split, mask=inside, other=float("-inf"))
    token = tl.load(top_ids + row * num_splits + split, mask=inside, other=vocab_size)
    _, winner = _best_of(value, token, vocab_size)
    tl.store(out + row, tl.minimum(winner, vocab_size - 1).to(tl.int64))


def sample_triton(
    logits_RV: Tensor, params: SamplingTensors, purpose: int = PURPOSE_SAMPLE, broken: Tensor | None = None
) -> Tensor:
    """See quire_kernels.sampling."""
    if broken is not None:
        # The kernels pass NaN over. One more pass over the logits is little beside theirs.
        mark_broken(logits_RV.amax(-1), broken)
    assert logits_RV.stride(1) == 1
    (num_rows, vocab_size), device = logits_RV.shape, logits_RV.device
    out = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return out
    config = row_config("vocabulary")
    block = min(config.block, triton.next_power_of_2(vocab_size))
    num_splits = triton.cdiv(vocab_size, block * TILES_PER_SPLIT)
    block_s, room = triton.next_power_of_2(num_splits), min(MAX_CANDIDATES, triton.next_power_of_2(vocab_size))
    # Tensors of their own: halves of one would be aligned at some numbers of rows only, and kernels compile anew for that.
    tops, draws = (torch.empty((num_rows, num_splits), device=device) for _ in range(2))
    top_ids = torch.empty((num_rows, num_splits), dtype=torch.int32, device=device)
    pivots, last_ties = (torch.empty(num_rows, dtype=torch.int32, device=device) for _ in range(2))
    candidates = torch.empty((num_rows, room), device=device)
    candidate_ids = torch.empty((num_rows, room), dtype=torch.int32, device=device)
    row = (logits_RV.stride(0), vocab_size)
    tile = {"BLOCK": block, "num_warps": config.num_warps}
    # Parameters may be columns of a table; the kernels read them as vectors.
    heat, k, p = params.temperature.contiguous(), params.top_k.contiguous(), params.top_p.contiguous()
    min_p, seeds, positions = params.min_p.contiguous(), params.seeds.contiguous(), params.positions.contiguous()
    top_kernel[(num_rows, num_splits)](logits_RV, heat, tops, top_ids, *row, TILES=TILES_PER_SPLIT, **tile)
    scratch = (pivots, last_ties, candidates, candidate_ids)
    pivot_kernel[(num_rows,)](
        logits_RV, heat, k, p, tops, *scratch, *row, num_splits, BLOCK_S=block_s, ROOM=room, **tile
    )
    draw_kernel[(num_rows, num_splits)](
        logits_RV,
        heat,
        min_p,
        seeds,
        positions,
        tops,
        top_ids,
        pivots,
        last_ties,
        draws,
        *row,
        PURPOSE=purpose,
        TILES=TILES_PER_SPLIT,
        BLOCK_S=block_s,
        **tile,
    )
    choose_kernel[(num_rows,)](draws, top_ids, out, num_splits, vocab_size, BLOCK_S=block_s, num_warps=1)
    return out
