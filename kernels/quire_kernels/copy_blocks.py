"""Copy whole KV blocks, for copy-before-write of shared blocks.

    kv_cache  [N, ...]        N blocks, each one contiguous run (all layers, keys and values, heads, slots)
    pairs     [P, 2] int64    source and destination block of each copy

A destination appears once and is no pair's source, so the copies may run in any order. Written in place.
"""

from torch import Tensor


def copy_blocks_reference(kv_cache: Tensor, pairs: Tensor) -> None:
    """One gather and one scatter of whole blocks: the fast way on a CPU too."""
    if pairs.shape[0]:
        kv_cache[pairs[:, 1]] = kv_cache[pairs[:, 0]]
