# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of linear and matmul_fp8 whose results do not depend on the number of rows, for --batch-invariant. See quire_kernels.linear
and quire_kernels.matmul_fp8 for the tables.

A library chooses tiles, and whether to split K, by the number of rows; here every sum runs over K in the same steps, in one program, by the
same matrix instructions: the tile's shape depends on the weight alone. Rows that are missing in a tile cost no memory traffic, and where
there are few, reading the weight is what takes the time.

Grid (tiles of T x tiles of N,): tiles of TILES_TOGETHER rows of tiles run side by side, so that weights stay near.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES_TOGETHER = 8
BLOCK_M = 128
"""Rows of a tile: prompts use it up, and two of the instructions' 64 rows hide the loads of a decode step."""
_MANY_OUTPUTS = 8192


@triton.jit(do_not_specialize=["num_tokens"])
def invariant_matmul_kernel(
    x,
    x_scales,
    weight,
    w_scales,
    bias,
    out,
    num_tokens,
    x_stride,
    SIZE_N: tl.constexpr,
    SIZE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """x_scales [T] and w_scales [N] are of FP8 matrices, or None; so may bias be."""
    COLUMNS: tl.constexpr = (SIZE_N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    group_first = program // (TOGETHER * COLUMNS) * TOGETHER
    group_size = tl.minimum(tl.cdiv(num_tokens, BLOCK_M) - group_first, TOGETHER)
    tile = group_first + program % (TOGETHER * COLUMNS) % group_size
    column = program % (TOGETHER * COLUMNS) // group_size
    token = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    is_token = token < num_tokens
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    # Columns past the end repeat the last one: whole tiles load faster than masked ones.
    n_in = tl.minimum(n, SIZE_N - 1)
    k = tl.arange(0, BLOCK_K)
    x_at = x + token[:, None] * x_stride + k[None, :]
    w_at = weight + n_in.to(tl.int64)[None, :] * SIZE_K + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, SIZE_K, BLOCK_K):
        if SIZE_K % BLOCK_K == 0:
            x_tile = tl.load(x_at + first, mask=is_token[:, None], other=0.0)
            w_tile = tl.load(w_at + first)
        else:
            inside_k = first + k < SIZE_K
            x_tile = tl.load(x_at + first, mask=is_token[:, None] & inside_k[None, :], other=0.0)
            w_tile = tl.load(w_at + first, mask=inside_k[:, None], other=0.0)
        if x_scales is not None:
            acc = tl.dot(x_tile, w_tile, acc, max_num_imprecise_acc=BLOCK_K)
        else:
            acc = tl.dot(x_tile, w_tile, acc, input_precision="ieee")
    if x_scales is not None:
        acc *= tl.load(x_scales + token, mask=is_token, other=0.0)[:, None] * tl.load(w_scales + n_in)[None, :]
    if bias is not None:
        acc += tl.load(bias + n_in).to(tl.float32)[None, :]
    out_at = out + token[:, None] * SIZE_N + n[None, :]
    tl.store(out_at, acc.to(out.dtype.element_ty), mask=is_token[:, None] & (n < SIZE_N)[None, :])


def linear_invariant(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """See quire_kernels.linear."""
    return _launch(x_TK, None, weight_NK, None, bias_N, x_TK.dtype)


def matmul_fp8_invariant(
    x_TK: Tensor, x_scales: Tensor, weight_NK: Tensor, w_scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """See quire_kernels.matmul_fp8."""
    assert x_TK.is_contiguous() and x_scales.is_contiguous()
    per_output = w_scales.expand(weight_NK.shape[0]).contiguous()
    return _launch(x_TK, x_scales, weight_NK, per_output, None, dtype)


def tile_shape(num_outputs: int, element_bytes: int) -> dict[str, int]:
    """Launch parameters by the weight alone."""
    if element_bytes == 4:
        return {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    # A narrow weight has too few wide tiles for the device.
    block_n = 128 if num_outputs >= _MANY_OUTPUTS else 64
    return {
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": block_n,
        "BLOCK_K": 128 // element_bytes,
        "num_warps": 8 if block_n == 128 else 4,
        "num_stages": 4,
    }


def _launch(
    x: Tensor, x_scales: Tensor | None, weight: Tensor, w_scales: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    (num_tokens, size), num_outputs = x.shape, weight.shape[0]
    assert x.stride(1) == 1 and weight.is_contiguous() and weight.shape[1] == size
    out = torch.empty((num_tokens, num_outputs), dtype=dtype, device=x.device)
    if num_tokens:
        shape = tile_shape(num_outputs, x.element_size())
        grid = triton.cdiv(num_tokens, shape["BLOCK_M"]) * triton.cdiv(num_outputs, shape["BLOCK_N"])
        invariant_matmul_kernel[(grid,)](
            x,
            x_scales,
            weight,
            w_scales,
            bias,
            out,
            num_tokens,
            x.stride(0),
            SIZE_N=num_outputs,
            SIZE_K=size,
            TOGETHER=TILES_TOGETHER,
            **shape,
        )
    return out
