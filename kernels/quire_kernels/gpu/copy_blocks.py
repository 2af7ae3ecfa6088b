# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of copy_blocks. See quire_kernels.copy_blocks for the table.

Grid (P, tiles of a block): one program copies one tile.
"""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.launch_configs import row_config


@triton.jit
def copy_blocks_kernel(kv_cache, pairs, block_len, BLOCK: tl.constexpr):
    pair = tl.program_id(0)
    source, target = tl.load(pairs + 2 * pair), tl.load(pairs + 2 * pair + 1)
    i = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < block_len
    tl.store(kv_cache + target * block_len + i, tl.load(kv_cache + source * block_len + i, mask=inside), mask=inside)


def copy_blocks_triton(kv_cache: Tensor, pairs: Tensor) -> None:
    """See quire_kernels.copy_blocks."""
    assert kv_cache.is_contiguous() and pairs.is_contiguous()
    if pairs.shape[0] == 0:
        return
    config, block_len = row_config("copy_blocks"), kv_cache.stride(0)
    grid = (pairs.shape[0], triton.cdiv(block_len, config.block))
    copy_blocks_kernel[grid](kv_cache, pairs, block_len, BLOCK=config.block, num_warps=config.num_warps)
