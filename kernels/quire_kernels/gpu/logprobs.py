# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of top_logprobs. See quire_kernels.logprobs for the table.

Grid (R,): one program a row. It streams over the row for the maximum, for the sum, the rank and the bins, and to collect the candidates
(gpu/candidates.py), among which it finds the k likeliest. Where these are more than ROOM (many equal logits), each of the k is a pass over
the row. Past MAX_TOP the launcher sorts instead.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.gpu.candidates import NUM_BINS, bin_of, collect, last_bin_needed
from quire_kernels.launch_configs import row_config
from quire_kernels.logprobs import TopLogprobs, top_logprobs_reference

MAX_TOP = 64
MAX_CANDIDATES = 1024
"""Tokens that a program holds in registers."""


@triton.jit(do_not_specialize=["k"])
def top_logprobs_kernel(
    logits,
    chosen,
    chosen_logprobs,
    chosen_ranks,
    ids,
    logprobs,
    candidates,
    candidate_ids,
    stride_r,
    vocab_size,
    k,
    BLOCK: tl.constexpr,
    ROOM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    values = logits + row * stride_r
    lanes = tl.arange(0, BLOCK)
    picked = tl.load(values + tl.load(chosen + row)).to(tl.float32)

    largest = float("-inf")
    for start in range(0, vocab_size, BLOCK):
        i = start + lanes
        largest = tl.maximum(
            largest, tl.max(tl.load(values + i, mask=i < vocab_size, other=float("-inf")).to(tl.float32))
        )
    total = 0.0
    rank = 1
    counts = tl.zeros((NUM_BINS,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        i = start + lanes
        value = tl.load(values + i, mask=i < vocab_size, other=float("-inf")).to(tl.float32)
        total += tl.sum(tl.exp(value - largest))
        rank += tl.sum((value > picked).to(tl.int32))
        counts += tl.histogram(bin_of(value, largest), NUM_BINS)
    normaliser = largest + tl.log(total)
    tl.store(chosen_logprobs + row, picked - normaliser)
    tl.store(chosen_ranks + row, rank)

    last_bin, num_candidates = last_bin_needed(counts, tl.cumsum(counts) >= k, ROOM)
    if (k > 0) & (last_bin >= 0):
        candidates += row * ROOM
        candidate_ids += row * ROOM
        collect(values, candidates, candidate_ids, last_bin, largest, vocab_size, 1.0, BLOCK)
        lane = tl.arange(0, ROOM)
        left = tl.load(candidates + lane, mask=lane < num_candidates, other=float("-inf"))
        token = tl.load(candidate_ids + lane, mask=lane < num_candidates, other=vocab_size)
        for place in range(k):
            best_value = tl.max(left)
            best_id = tl.min(tl.where(left == best_value, token, vocab_size))
            tl.store(ids + row * k + place, best_id)
            tl.store(logprobs + row * k + place, best_value - normaliser)
            left = tl.where(token == best_id, float("-inf"), left)
    else:
        # Each pass finds the best token that ranks after the last one found.
        last_value = float("inf")
        last_id = -1
        for place in range(k):
            best_value = float("-inf")
            best_id = vocab_size
            for start in range(0, vocab_size, BLOCK):
                i = start + lanes
                value = tl.load(values + i, mask=i < vocab_size, other=float("-inf")).to(tl.float32)
                is_left = (i < vocab_size) & ((value < last_value) | ((value == last_value) & (i > last_id)))
                value = tl.where(is_left, value, float("-inf"))
                tile_value = tl.max(value)
                tile_id = tl.min(tl.where(is_left & (value == tile_value), i, vocab_size))
                is_better = (tile_value > best_value) | ((tile_value == best_value) & (tile_id < best_id))
                best_id = tl.where(is_better, tile_id, best_id)
                best_value = tl.where(is_better, tile_value, best_value)
            tl.store(ids + row * k + place, best_id)
            tl.store(logprobs + row * k + place, best_value - normaliser)
            last_value = best_value
            last_id = best_id


def top_logprobs_triton(logits_RV: Tensor, chosen: Tensor, k: int) -> TopLogprobs:
    """See quire_kernels.logprobs."""
    assert logits_RV.stride(1) == 1
    num_rows, vocab_size = logits_RV.shape
    k = min(k, vocab_size)
    if k > MAX_TOP:
        return top_logprobs_reference(logits_RV, chosen, k)
    device = logits_RV.device
    found = TopLogprobs(
        chosen_logprobs=torch.empty(num_rows, device=device),
        chosen_ranks=torch.empty(num_rows, dtype=torch.int64, device=device),
        ids=torch.empty((num_rows, k), dtype=torch.int64, device=device),
        logprobs=torch.empty((num_rows, k), device=device),
    )
    if num_rows:
        config = row_config("vocabulary")
        room = min(MAX_CANDIDATES, triton.next_power_of_2(vocab_size))
        top_logprobs_kernel[(num_rows,)](
            logits_RV,
            chosen,
            found.chosen_logprobs,
            found.chosen_ranks,
            found.ids,
            found.logprobs,
            torch.empty((num_rows, room), device=device),
            torch.empty((num_rows, room), dtype=torch.int32, device=device),
            logits_RV.stride(0),
            vocab_size,
            k,
            BLOCK=min(config.block, triton.next_power_of_2(vocab_size)),
            ROOM=room,
            num_warps=config.num_warps,
        )
    return found
