# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of moe. See quire_kernels.moe for the table, gpu/moe_align.py for pairs and tiles.

expert_kernel, grid (tiles of pairs x tiles of N,): one tile of one expert's product, rows gathered by pair and scattered by pair. Twice a
layer: gate_up with silu_mul in its end (a program makes a tile of gate and the same of up), then down.
combine_kernel, grid (T, tiles of E): sums a token's pairs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.gpu.moe_align import align

TILES_TOGETHER = 8
"""Tiles of pairs that run side by side over the same columns, so that an expert's weights are read from memory once."""


INVARIANT_PAIRS = 64
"""Pairs of a tile where its shape may not depend on their number: as many rows as the matrix instructions take."""


@triton.jit
def load_weights(at, inside_k, IS_WHOLE: tl.constexpr):
    """[BLOCK_K, BLOCK_N]; without a mask if the tile is whole."""
    return tl.load(at) if IS_WHOLE else tl.load(at, mask=inside_k[:, None], other=0.0)


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])
def expert_kernel(
    a,
    weight,
    out,
    sorted_pairs,
    tile_experts,
    num_pairs,
    num_tiles,
    a_stride,
    PAIRS_PER_ROW: tl.constexpr,
    SIZE_N: tl.constexpr,
    SIZE_K: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """out[pair, n] = a[pair // PAIRS_PER_ROW] . weight[expert, n]; GATED: silu of that, times that of row n + SIZE_N."""
    COLUMNS: tl.constexpr = (SIZE_N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    group_first = program // (TOGETHER * COLUMNS) * TOGETHER
    group_size = tl.minimum(num_tiles - group_first, TOGETHER)
    tile = group_first + program % (TOGETHER * COLUMNS) % group_size
    column = program % (TOGETHER * COLUMNS) // group_size
    expert = tl.load(tile_experts + tile).to(tl.int64)
    if expert >= 0:
        pair = tl.load(sorted_pairs + tile * BLOCK_M + tl.arange(0, BLOCK_M))
        is_pair = pair < num_pairs
        n = column * BLOCK_N + tl.arange(0, BLOCK_N)
        inside_n = n < SIZE_N
        k = tl.arange(0, BLOCK_K)
        a_at = a + (pair // PAIRS_PER_ROW).to(tl.int64)[:, None] * a_stride + k[None, :]
        rows_of_expert: tl.constexpr = 2 * SIZE_N if GATED else SIZE_N
        # Columns past the end repeat the last one: whole tiles load faster than masked ones.
        w_at = weight + (expert * rows_of_expert + tl.minimum(n, SIZE_N - 1))[None, :] * SIZE_K + k[:, None]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        acc_up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, SIZE_K, BLOCK_K):
            inside_k = (first + k < SIZE_K) | (SIZE_K % BLOCK_K == 0)
            a_tile = tl.load(a_at + first, mask=is_pair[:, None] & inside_k[None, :], other=0.0)
            w_tile = load_weights(w_at + first, inside_k, SIZE_K % BLOCK_K == 0)
            acc = tl.dot(a_tile, w_tile, acc, input_precision="ieee")
            if GATED:
                up_tile = load_weights(w_at + SIZE_N * SIZE_K + first, inside_k, SIZE_K % BLOCK_K == 0)
                acc_up = tl.dot(a_tile, up_tile, acc_up, input_precision="ieee")
        dtype = out.dtype.element_ty
        result = acc.to(dtype)
        if GATED:
            gate = result.to(tl.float32)
            activated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
            result = (activated * acc_up.to(dtype).to(tl.float32)).to(dtype)
        out_at = out + pair.to(tl.int64)[:, None] * SIZE_N + n[None, :]
        tl.store(out_at, result, mask=is_pair[:, None] & inside_n[None, :])


@triton.jit
def combine_kernel(outputs, weights, experts, out, size, PAIRS_PER_ROW: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for place in tl.static_range(PAIRS_PER_ROW):
        pair = token * PAIRS_PER_ROW + place
        is_pair = tl.load(experts + pair) >= 0
        value = tl.load(outputs + pair * size + i, mask=is_pair & (i < size), other=0.0).to(tl.float32)
        total += value * tl.load(weights + pair)
    tl.store(out + token * size + i, total.to(out.dtype.element_ty), mask=i < size)


def moe_triton(
    x_TE: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_XFE: Tensor,
    down_XEF: Tensor,
    *,
    batch_invariant: bool = False,
) -> Tensor:
    """See quire_kernels.moe. batch_invariant: one shape of tile, whatever the number of pairs."""
    num_tokens, size = x_TE.shape
    num_experts, _, width = down_XEF.shape
    assert x_TE.stride(1) == 1 and gate_up_XFE.is_contiguous() and down_XEF.is_contiguous()
    assert weights_TK.is_contiguous() and weights_TK.dtype == torch.float32
    out = torch.empty((num_tokens, size), dtype=x_TE.dtype, device=x_TE.device)
    if num_tokens == 0:
        return out
    num_pairs, per_token = experts_TK.numel(), experts_TK.shape[1]
    block_m = INVARIANT_PAIRS if batch_invariant else pairs_per_tile(num_pairs, num_experts)
    pairs, tiles = align(experts_TK, num_experts, block_m)
    hidden = torch.empty((num_pairs, width), dtype=x_TE.dtype, device=x_TE.device)
    outputs = torch.empty((num_pairs, size), dtype=x_TE.dtype, device=x_TE.device)
    _launch_experts(x_TE, gate_up_XFE, hidden, pairs, tiles, pairs_per_row=per_token, is_gated=True, block_m=block_m)
    _launch_experts(hidden, down_XEF, outputs, pairs, tiles, pairs_per_row=1, is_gated=False, block_m=block_m)
    block = min(1024, triton.next_power_of_2(size))
    combine_kernel[(num_tokens, triton.cdiv(size, block))](
        outputs, weights_TK, experts_TK, out, size, PAIRS_PER_ROW=per_token, BLOCK=block
    )
    return out


def pairs_per_tile(num_pairs: int, num_experts: int) -> int:
    """About as many as an expert has, 16 to 128: few waste little, many make use of the weights while they are near."""
    mean = -(-num_pairs // num_experts)
    return max(16, min(128, 1 << (mean - 1).bit_length()))


def tile_shape(block_m: int, element_bytes: int, *, is_gated: bool) -> dict[str, int]:
    """Launch parameters for a number of pairs: a gated tile has two products, of half the columns each."""
    if element_bytes == 4:
        return {"BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    if block_m <= 32:
        # Bound by reading weights: deep buffers, and programs enough for every multiprocessor.
        return {"BLOCK_N": 64, "BLOCK_K": 128 if is_gated else 256, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_N": 64 if is_gated else 128, "BLOCK_K": 64, "num_warps": 4 if block_m == 64 else 8, "num_stages": 4}


def _launch_experts(
    a: Tensor,
    weight: Tensor,
    out: Tensor,
    pairs: Tensor,
    tiles: Tensor,
    *,
    pairs_per_row: int,
    is_gated: bool,
    block_m: int,
) -> None:
    size_n, size_k, num_tiles = out.shape[1], a.shape[1], tiles.shape[0]
    shape = tile_shape(block_m, a.element_size(), is_gated=is_gated)
    expert_kernel[(num_tiles * triton.cdiv(size_n, shape["BLOCK_N"]),)](
        a,
        weight,
        out,
        pairs,
        tiles,
        out.shape[0],
        num_tiles,
        a.stride(0),
        PAIRS_PER_ROW=pairs_per_row,
        SIZE_N=size_n,
        SIZE_K=size_k,
        GATED=is_gated,
        BLOCK_M=block_m,
        TOGETHER=TILES_TOGETHER,
        **shape,
    )
