# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of apply_bias and apply_bitmask. See quire_kernels.token_bias for the tables.

Grids: bias (tiles of n,); bit mask (M, tiles of V), one program a tile of a row.
"""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.launch_configs import row_config


@triton.jit(do_not_specialize=["num_entries"])
def bias_kernel(logits, row_idx, ids, values, num_entries, vocab_size, logits_stride_r, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_idx + i, mask=i < num_entries, other=-1)
    token = tl.load(ids + i, mask=row >= 0, other=-1)
    kept = (row >= 0) & (token >= 0) & (token < vocab_size)
    at = logits + row * logits_stride_r + token
    value = tl.load(at, mask=kept, other=0.0) + tl.load(values + i, mask=kept, other=0.0)
    tl.store(at, value, mask=kept)


@triton.jit
def bitmask_kernel(logits, rows, bitmask, logits_stride_r, num_words, vocab_size, BLOCK: tl.constexpr):
    mask_row = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + mask_row)
    if row >= 0:
        i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = i < vocab_size
        words = tl.load(bitmask + mask_row * num_words + i // 32, mask=inside, other=-1)
        is_forbidden = ((words >> (i % 32)) & 1) == 0
        forbidden = tl.full((BLOCK,), float("-inf"), tl.float32)
        tl.store(logits + row * logits_stride_r + i, forbidden, mask=inside & is_forbidden)


def apply_bias_triton(logits_RV: Tensor, row_idx: Tensor, ids: Tensor, values: Tensor) -> None:
    """See quire_kernels.token_bias."""
    assert logits_RV.stride(1) == 1
    if row_idx.shape[0] == 0:
        return
    config = row_config("scatter")
    bias_kernel[(triton.cdiv(row_idx.shape[0], config.block),)](
        logits_RV,
        row_idx,
        ids,
        values,
        row_idx.shape[0],
        logits_RV.shape[1],
        logits_RV.stride(0),
        BLOCK=config.block,
        num_warps=config.num_warps,
    )


def apply_bitmask_triton(logits_RV: Tensor, rows: Tensor, bitmask: Tensor) -> None:
    """See quire_kernels.token_bias."""
    assert logits_RV.stride(1) == 1 and bitmask.is_contiguous()
    if rows.shape[0] == 0:
        return
    config, vocab_size = row_config("penalties"), logits_RV.shape[1]
    bitmask_kernel[(rows.shape[0], triton.cdiv(vocab_size, config.block))](
        logits_RV,
        rows,
        bitmask,
        logits_RV.stride(0),
        bitmask.shape[1],
        vocab_size,
        BLOCK=config.block,
        num_warps=config.num_warps,
    )
