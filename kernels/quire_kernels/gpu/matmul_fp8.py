# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of matmul_fp8_blocks. See quire_kernels.matmul_fp8 for the table.

Grid (tiles of T x tiles of N,): a program makes one tile; the tiles of 8 rows of tiles run side by side, so that weights stay near. Each
step of 128 numbers of K is one product of FP8 matrices, then scaled and added in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.matmul_fp8 import SCALE_BLOCK

TILES_TOGETHER = 8
INVARIANT_TOKENS = 128
"""So many tokens' tile serves all, where a tile's shape may not depend on them: 64 rows, as many as the matrix instructions take."""


@triton.jit(do_not_specialize=["num_tokens"])
def matmul_fp8_blocks_kernel(
    x,
    x_scales,
    weight,
    w_scales,
    out,
    num_tokens,
    SIZE_N: tl.constexpr,
    SIZE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    BLOCK_K: tl.constexpr = 128
    COLUMNS: tl.constexpr = (SIZE_N + BLOCK_N - 1) // BLOCK_N
    SCALES: tl.constexpr = (SIZE_K + BLOCK_K - 1) // BLOCK_K
    program = tl.program_id(0)
    group_first = program // (TOGETHER * COLUMNS) * TOGETHER
    group_size = tl.minimum(tl.cdiv(num_tokens, BLOCK_M) - group_first, TOGETHER)
    tile = group_first + program % (TOGETHER * COLUMNS) % group_size
    column = program % (TOGETHER * COLUMNS) // group_size
    token = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    is_token = token < num_tokens
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows and columns past the end repeat the last one; they are not written.
    token_in = tl.minimum(token, num_tokens - 1)
    x_at = x + token_in[:, None] * SIZE_K + k[None, :]
    w_at = weight + tl.minimum(n, SIZE_N - 1).to(tl.int64)[None, :] * SIZE_K + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(SCALES):
        if SIZE_K % BLOCK_K == 0:
            x_tile = tl.load(x_at + step * BLOCK_K)
            w_tile = tl.load(w_at + step * BLOCK_K)
        else:
            inside_k = step * BLOCK_K + k < SIZE_K
            x_tile = tl.load(x_at + step * BLOCK_K, mask=inside_k[None, :], other=0.0)
            w_tile = tl.load(w_at + step * BLOCK_K, mask=inside_k[:, None], other=0.0)
        x_scale = tl.load(x_scales + token_in * SCALES + step)
        # A tile lies within one block of the weight: BLOCK_N divides 128.
        w_scale = tl.load(w_scales + column * BLOCK_N // BLOCK_K * SCALES + step)
        acc += tl.dot(x_tile, w_tile) * (x_scale * w_scale)[:, None]
    out_at = out + token[:, None] * SIZE_N + n[None, :]
    tl.store(out_at, acc.to(out.dtype.element_ty), mask=is_token[:, None] & (n < SIZE_N)[None, :])


def matmul_fp8_blocks_triton(
    x_TK: Tensor,
    x_scales: Tensor,
    weight_NK: Tensor,
    w_scales: Tensor,
    dtype: torch.dtype = torch.bfloat16,
    *,
    batch_invariant: bool = False,
) -> Tensor:
    """See quire_kernels.matmul_fp8. batch_invariant: one shape of tile, whatever the number of tokens."""
    (num_tokens, size), num_outputs = x_TK.shape, weight_NK.shape[0]
    assert all(tensor.is_contiguous() for tensor in (x_TK, x_scales, weight_NK, w_scales))
    assert x_scales.shape[1] == w_scales.shape[1] == -(-size // SCALE_BLOCK)
    out = torch.empty((num_tokens, num_outputs), dtype=dtype, device=x_TK.device)
    if num_tokens:
        shape = tile_shape(INVARIANT_TOKENS if batch_invariant else num_tokens)
        grid = triton.cdiv(num_tokens, shape["BLOCK_M"]) * triton.cdiv(num_outputs, shape["BLOCK_N"])
        matmul_fp8_blocks_kernel[(grid,)](
            x_TK,
            x_scales,
            weight_NK,
            w_scales,
            out,
            num_tokens,
            SIZE_N=num_outputs,
            SIZE_K=size,
            TOGETHER=TILES_TOGETHER,
            **shape,
        )
    return out


def tile_shape(num_tokens: int) -> dict[str, int]:
    """Launch parameters: few tokens are bound by reading the weight, and want many programs; many by the products."""
    if num_tokens <= 32:
        return {"BLOCK_M": 16 if num_tokens <= 16 else 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 6}
    if num_tokens <= 128:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 5}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 4}
