"""Write this step's keys and values into the paged cache.

    k, v              [T, H, D]      T tokens in the step, H kv heads, D head dim; any stride over T and H, D contiguous
    k_cache, v_cache  [N, H, B, D]   N blocks, B slots each; any stride over N (a layer's view of the whole cache)
    slots             [T] int64      block * B + offset; -1 marks padding and is skipped

No slot appears twice. The caches are written in place.
"""

import torch
from torch import Tensor


def store_kv_reference(k_THD: Tensor, v_THD: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Token by token, for tests."""
    block_size = k_cache.shape[2]
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            block, offset = divmod(slot, block_size)
            k_cache[block, :, offset] = k_THD[token]
            v_cache[block, :, offset] = v_THD[token]


def store_kv_cpu(k_THD: Tensor, v_THD: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """One scatter for the keys and one for the values."""
    kept = slots >= 0
    if not bool(kept.all()):
        k_THD, v_THD, slots = k_THD[kept], v_THD[kept], slots[kept]
    block_size = k_cache.shape[2]
    blocks = torch.div(slots, block_size, rounding_mode="floor")
    offsets = slots - blocks * block_size
    k_cache[blocks, :, offsets] = k_THD
    v_cache[blocks, :, offsets] = v_THD
