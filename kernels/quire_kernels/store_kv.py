"""Write this step's keys and values into the paged cache.

    k, v              [T, H, D]      T tokens in the step, H kv heads, D head dim; any stride over T and H, D contiguous
    k_cache, v_cache  [N, H, B, D]   N blocks, B slots each; any stride over N (a layer's view of the whole cache)
    slots             [T] int64      block * B + offset; -1 marks padding and is skipped

No slot appears twice. The caches are written in place.

`store_kv_fp8` writes caches of float8_e4m3fn:

    kv_scales         [2, H] float32  of keys, of values: what is stored is x / scale, clamped to 448 and rounded to nearest
"""

import torch
from torch import Tensor

from quire_kernels.quantize_fp8 import FP8, FP8_MAX


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


def store_kv_fp8_reference(
    k_THD: Tensor, v_THD: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, kv_scales: Tensor
) -> None:
    """The quantised heads, stored as any others."""
    k_scale, v_scale = kv_scales[:, :, None]
    k_THD, v_THD = scaled_to_fp8(k_THD, k_scale), scaled_to_fp8(v_THD, v_scale)
    store_kv_reference(k_THD, v_THD, k_cache, v_cache, slots)


def scaled_to_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale in float8_e4m3fn; what is too large becomes the largest."""
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)
