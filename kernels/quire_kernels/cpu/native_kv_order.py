"""Between the plain order of a cache, slot by dim, and the order of the C++ ops. `native/attention.h` draws the latter.

    cache  [..., B, D]   float32 or bfloat16, the runs contiguous; the result has the same shape and dtype, its runs another order

For what leaves the process, and for tests. Sizes do not change: a run of B * D numbers stays where it is.
"""

from torch import Tensor


def keys_to_native(cache: Tensor) -> Tensor:
    """Units of 4 bytes: [D * itemsize / 4][B]."""
    block_size, head_dim = cache.shape[-2:]
    per_unit = 4 // cache.itemsize
    units = cache.reshape(*cache.shape[:-1], head_dim // per_unit, per_unit)
    return units.transpose(-3, -2).contiguous().view(*cache.shape[:-2], block_size, head_dim)


def keys_to_plain(cache: Tensor) -> Tensor:
    """The inverse of `keys_to_native`."""
    block_size, head_dim = cache.shape[-2:]
    per_unit = 4 // cache.itemsize
    units = cache.reshape(*cache.shape[:-2], head_dim // per_unit, block_size, per_unit)
    return units.transpose(-3, -2).contiguous().view(cache.shape)


def values_to_native(cache: Tensor) -> Tensor:
    """Units of 4 bytes: [B * itemsize / 4][D]."""
    block_size, head_dim = cache.shape[-2:]
    per_unit = 4 // cache.itemsize
    units = cache.reshape(*cache.shape[:-2], block_size // per_unit, per_unit, head_dim)
    return units.transpose(-2, -1).contiguous().view(cache.shape)


def values_to_plain(cache: Tensor) -> Tensor:
    """The inverse of `values_to_native`."""
    block_size, head_dim = cache.shape[-2:]
    per_unit = 4 // cache.itemsize
    units = cache.reshape(*cache.shape[:-2], block_size // per_unit, head_dim, per_unit)
    return units.transpose(-2, -1).contiguous().view(cache.shape)


def has_contiguous_runs(cache: Tensor) -> bool:
    """Whether [N, Hkv, B, D] has each block's runs one after the other, whatever lies between blocks."""
    _, num_kv_heads, block_size, head_dim = cache.shape
    follows = num_kv_heads == 1 or cache.stride(1) == block_size * head_dim
    return follows and cache.stride()[2:] == (head_dim, 1)
