"""CPU path of apply_rotary: q and k rotated together where they lie side by side. See quire_kernels.rotary for the table."""

import torch
from torch import Tensor


def apply_rotary_cpu(q_THD: Tensor, k_THD: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k in new tensors, or in views of one new tensor when they are neighbours in a fused projection."""
    cos, sin = cos_sin.index_select(0, positions).to(q_THD.dtype)[:, None].chunk(2, dim=-1)
    if not _are_neighbours(q_THD, k_THD):
        return _rotate(q_THD, cos, sin), _rotate(k_THD, cos, sin)
    num_tokens, num_heads, head_dim = q_THD.shape
    shape = (num_tokens, num_heads + k_THD.shape[1], head_dim)
    both = _rotate(q_THD.as_strided(shape, q_THD.stride()), cos, sin)
    return both[:, :num_heads], both[:, num_heads:]


def _are_neighbours(q_THD: Tensor, k_THD: Tensor) -> bool:
    offset = k_THD.storage_offset() - q_THD.storage_offset()
    return (
        q_THD.untyped_storage().data_ptr() == k_THD.untyped_storage().data_ptr()
        and q_THD.stride() == k_THD.stride()
        and offset == q_THD.shape[1] * q_THD.shape[2]
        and q_THD.stride()[1:] == (q_THD.shape[2], 1)
    )


def _rotate(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each product is rounded before the sum, as in the reference."""
    half = cos.shape[-1]
    out = torch.empty(x_THD.shape, dtype=x_THD.dtype)
    first, second = x_THD[..., :half], x_THD[..., half : 2 * half]
    torch.mul(first, cos, out=out[..., :half]).sub_(second * sin)
    torch.mul(second, cos, out=out[..., half : 2 * half]).add_(first * sin)
    if 2 * half < x_THD.shape[-1]:
        out[..., 2 * half :] = x_THD[..., 2 * half :]
    return out
