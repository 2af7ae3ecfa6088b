# mypy: disable-error-code="no-untyped-def"
"""Sorts a step's (token, expert) pairs by expert, in tiles of BLOCK_M pairs of one expert, for the grouped matrix products.

    experts        [A] int64     the expert of each pair; pair a is token a // K; -1: none
    sorted_pairs   [P] int32     tile after tile; A where a tile has no more
    tile_experts   [P / BLOCK_M] int32   the expert of each tile, -1 for tiles that are not used
    cursors        [X] int32     scratch

Tiles are counted by A and X alone, so nothing waits for the device. The order of an expert's pairs is arbitrary: no result depends on it.

Grid (1,).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2048


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])
def align_kernel(
    experts,
    sorted_pairs,
    tile_experts,
    cursors,
    num_pairs,
    num_tiles,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lanes = tl.arange(0, BLOCK)
    expert = tl.arange(0, BLOCK_X)
    counts = tl.zeros((BLOCK_X,), tl.int32)
    for first in range(0, num_pairs, BLOCK):
        of_pair = tl.load(experts + first + lanes, mask=first + lanes < num_pairs, other=-1)
        # The bin beyond the last expert takes what counts for none.
        counts += tl.histogram(tl.where(of_pair < 0, BLOCK_X - 1, of_pair).to(tl.int32), BLOCK_X)
    tiles = tl.where(expert < NUM_EXPERTS, tl.cdiv(counts, BLOCK_M), 0)
    first_tile = tl.cumsum(tiles) - tiles
    tl.store(cursors + expert, first_tile * BLOCK_M, mask=expert < NUM_EXPERTS)
    for tile in range(tl.max(tiles)):
        tl.store(tile_experts + first_tile + tile, expert, mask=tile < tiles)
    num_used = tl.sum(tiles)
    for tile in range(num_used, num_tiles, BLOCK):
        tl.store(tile_experts + tile + lanes, -1, mask=tile + lanes < num_tiles)
    for first in range(0, num_used * BLOCK_M, BLOCK):
        tl.store(sorted_pairs + first + lanes, num_pairs, mask=first + lanes < num_used * BLOCK_M)
    tl.debug_barrier()
    for first in range(0, num_pairs, BLOCK):
        of_pair = tl.load(experts + first + lanes, mask=first + lanes < num_pairs, other=-1)
        place = tl.atomic_add(cursors + of_pair, 1, mask=of_pair >= 0)
        tl.store(sorted_pairs + place, first + lanes, mask=of_pair >= 0)


def align(experts_TK: Tensor, num_experts: int, block_m: int) -> tuple[Tensor, Tensor]:
    """(sorted_pairs, tile_experts); see the module."""
    assert experts_TK.is_contiguous()
    num_pairs, device = experts_TK.numel(), experts_TK.device
    # Each expert with pairs wastes less than a tile, and there are no more such experts than pairs.
    num_tiles = num_pairs // block_m + min(num_experts, num_pairs)
    sorted_pairs = torch.empty(num_tiles * block_m, dtype=torch.int32, device=device)
    tile_experts = torch.empty(num_tiles, dtype=torch.int32, device=device)
    cursors = torch.empty(num_experts, dtype=torch.int32, device=device)
    align_kernel[(1,)](
        experts_TK,
        sorted_pairs,
        tile_experts,
        cursors,
        num_pairs,
        num_tiles,
        NUM_EXPERTS=num_experts,
        BLOCK_M=block_m,
        BLOCK_X=triton.next_power_of_2(num_experts + 1),
        BLOCK=CHUNK,
        num_warps=8,
    )
    return sorted_pairs, tile_experts
