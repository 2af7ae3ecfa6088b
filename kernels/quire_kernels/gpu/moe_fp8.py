# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of moe_fp8. See quire_kernels.moe_fp8 for the table, gpu/moe.py for the grid, gpu/moe_align.py for pairs and tiles.

Per layer: x is quantised, gate and up of every pair with silu_mul in their end, that is quantised, down, combined. Each step of 128 numbers
of K is one product of FP8 matrices that is added in float32: the tensor cores' own sums of FP8 keep fewer digits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.gpu.moe import INVARIANT_PAIRS, TILES_TOGETHER, combine_kernel, load_weights, pairs_per_tile
from quire_kernels.gpu.moe_align import align
from quire_kernels.gpu.quantize_fp8 import quantize_fp8_triton
from quire_kernels.moe_fp8 import Fp8Experts


@triton.jit
def fp8_product(a_tile, w_at, inside_k, acc, a_scale, w_scales, IS_WHOLE: tl.constexpr, IS_BLOCKS: tl.constexpr):
    """acc plus one step's product; a_scale [BLOCK_M] and the one number at w_scales are read by blocks only."""
    w_tile = load_weights(w_at, inside_k, IS_WHOLE)
    if IS_BLOCKS:
        return acc + tl.dot(a_tile, w_tile) * (a_scale * tl.load(w_scales))[:, None]
    return tl.dot(a_tile, w_tile, acc, max_num_imprecise_acc=a_tile.shape[1])


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])
def expert_fp8_kernel(
    a,
    a_scales,
    weight,
    w_scales,
    out,
    sorted_pairs,
    tile_experts,
    num_pairs,
    num_tiles,
    PAIRS_PER_ROW: tl.constexpr,
    SIZE_N: tl.constexpr,
    SIZE_K: tl.constexpr,
    GATED: tl.constexpr,
    IS_BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """As expert_kernel; a tile lies within one block of the weight, as BLOCK_N divides 128."""
    BLOCK_K: tl.constexpr = 128
    STEPS: tl.constexpr = (SIZE_K + BLOCK_K - 1) // BLOCK_K
    COLUMNS: tl.constexpr = (SIZE_N + BLOCK_N - 1) // BLOCK_N
    ROWS: tl.constexpr = 2 * SIZE_N if GATED else SIZE_N
    IS_WHOLE: tl.constexpr = SIZE_K % BLOCK_K == 0
    program = tl.program_id(0)
    group_first = program // (TOGETHER * COLUMNS) * TOGETHER
    group_size = tl.minimum(num_tiles - group_first, TOGETHER)
    tile = group_first + program % (TOGETHER * COLUMNS) % group_size
    column = program % (TOGETHER * COLUMNS) // group_size
    expert = tl.load(tile_experts + tile).to(tl.int64)
    if expert >= 0:
        pair = tl.load(sorted_pairs + tile * BLOCK_M + tl.arange(0, BLOCK_M))
        is_pair = pair < num_pairs
        row = (pair // PAIRS_PER_ROW).to(tl.int64)
        n = column * BLOCK_N + tl.arange(0, BLOCK_N)
        # Columns past the end repeat the last one: whole tiles load faster than masked ones.
        n_in = tl.minimum(n, SIZE_N - 1)
        k = tl.arange(0, BLOCK_K)
        a_at = a + row[:, None] * SIZE_K + k[None, :]
        w_at = weight + (expert * ROWS + n_in)[None, :] * SIZE_K + k[:, None]
        w_block = w_scales + (expert * (ROWS // BLOCK_K) + column * BLOCK_N // BLOCK_K) * STEPS
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        acc_up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        a_scale = tl.zeros((BLOCK_M,), tl.float32)
        for step in range(STEPS):
            first = step * BLOCK_K
            inside_k = (first + k < SIZE_K) | IS_WHOLE
            a_tile = tl.load(a_at + first, mask=is_pair[:, None] & inside_k[None, :], other=0.0)
            if IS_BLOCKS:
                a_scale = tl.load(a_scales + row * STEPS + step, mask=is_pair, other=0.0)
            acc = fp8_product(a_tile, w_at + first, inside_k, acc, a_scale, w_block + step, IS_WHOLE, IS_BLOCKS)
            if GATED:
                up_at = w_at + SIZE_N * SIZE_K + first
                up_block = w_block + SIZE_N // BLOCK_K * STEPS + step
                acc_up = fp8_product(a_tile, up_at, inside_k, acc_up, a_scale, up_block, IS_WHOLE, IS_BLOCKS)
        if not IS_BLOCKS:
            of_token = tl.load(a_scales + row, mask=is_pair, other=0.0)[:, None]
            of_output = w_scales + expert * ROWS + n_in
            acc *= of_token * tl.load(of_output)[None, :]
            if GATED:
                acc_up *= of_token * tl.load(of_output + SIZE_N)[None, :]
        dtype = out.dtype.element_ty
        result = acc.to(dtype)
        if GATED:
            gate = result.to(tl.float32)
            activated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
            result = (activated * acc_up.to(dtype).to(tl.float32)).to(dtype)
        out_at = out + pair.to(tl.int64)[:, None] * SIZE_N + n[None, :]
        tl.store(out_at, result, mask=is_pair[:, None] & (n < SIZE_N)[None, :])


def moe_fp8_triton(
    x_TE: Tensor, weights_TK: Tensor, experts_TK: Tensor, stacks: Fp8Experts, *, batch_invariant: bool = False
) -> Tensor:
    """See quire_kernels.moe_fp8. batch_invariant: one shape of tile, whatever the number of pairs."""
    num_tokens, size = x_TE.shape
    num_experts, _, width = stacks.down.shape
    assert weights_TK.is_contiguous() and weights_TK.dtype == torch.float32
    assert stacks.group is None or (size % stacks.group == 0 and width % stacks.group == 0)
    out = torch.empty((num_tokens, size), dtype=x_TE.dtype, device=x_TE.device)
    if num_tokens == 0:
        return out
    num_pairs, per_token = experts_TK.numel(), experts_TK.shape[1]
    block_m = INVARIANT_PAIRS if batch_invariant else pairs_per_tile(num_pairs, num_experts)
    pairs, tiles = align(experts_TK, num_experts, block_m)
    hidden = torch.empty((num_pairs, width), dtype=x_TE.dtype, device=x_TE.device)
    outputs = torch.empty((num_pairs, size), dtype=x_TE.dtype, device=x_TE.device)
    gate_up, down = (stacks.gate_up, stacks.gate_up_scales), (stacks.down, stacks.down_scales)
    rows = quantize_fp8_triton(x_TE, stacks.group)
    _launch_experts(rows, gate_up, hidden, pairs, tiles, pairs_per_row=per_token, is_gated=True, block_m=block_m)
    rows = quantize_fp8_triton(hidden, stacks.group)
    _launch_experts(rows, down, outputs, pairs, tiles, pairs_per_row=1, is_gated=False, block_m=block_m)
    block = min(1024, triton.next_power_of_2(size))
    combine_kernel[(num_tokens, triton.cdiv(size, block))](
        outputs, weights_TK, experts_TK, out, size, PAIRS_PER_ROW=per_token, BLOCK=block
    )
    return out


def tile_shape(block_m: int, *, is_gated: bool) -> dict[str, int]:
    """Launch parameters for a number of pairs: a gated tile has two products, of half the columns each."""
    if block_m <= 32:
        # Bound by reading weights: deep buffers, and programs enough for every multiprocessor.
        return {"BLOCK_N": 64, "num_warps": 4, "num_stages": 5}
    return {"BLOCK_N": 64 if is_gated else 128, "num_warps": 4 if block_m == 64 else 8, "num_stages": 4}


def _launch_experts(
    rows: tuple[Tensor, Tensor],
    weight: tuple[Tensor, Tensor],
    out: Tensor,
    pairs: Tensor,
    tiles: Tensor,
    *,
    pairs_per_row: int,
    is_gated: bool,
    block_m: int,
) -> None:
    assert all(tensor.is_contiguous() for tensor in (*rows, *weight))
    size_n, num_tiles = out.shape[1], tiles.shape[0]
    shape = tile_shape(block_m, is_gated=is_gated)
    expert_fp8_kernel[(num_tiles * triton.cdiv(size_n, shape["BLOCK_N"]),)](
        *rows,
        *weight,
        out,
        pairs,
        tiles,
        out.shape[0],
        num_tiles,
        PAIRS_PER_ROW=pairs_per_row,
        SIZE_N=size_n,
        SIZE_K=rows[0].shape[1],
        GATED=is_gated,
        IS_BLOCKS=weight[1].dim() == 3,
        BLOCK_M=block_m,
        TOGETHER=TILES_TOGETHER,
        **shape,
    )
