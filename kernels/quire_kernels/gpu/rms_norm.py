# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of rms_norm. See quire_kernels.rms_norm for the table.

Grid (rows,): one program normalises one row; x may be [T, E] or [T, H, E] with any strides over T and H.
"""

from typing import overload

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.launch_configs import warps_for


@triton.jit
def rms_norm_kernel(
    x,
    weight,
    residual,
    out,
    stride_t,
    stride_h,
    num_heads,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < SIZE
    value = tl.load(x + (row // num_heads) * stride_t + (row % num_heads) * stride_h + i, mask=inside, other=0.0)
    dtype = value.dtype
    value = value.to(tl.float32)
    if HAS_RESIDUAL:
        before = tl.load(residual + row * SIZE + i, mask=inside, other=0.0).to(tl.float32)
        summed = (value + before).to(dtype)
        tl.store(residual + row * SIZE + i, summed, mask=inside)
        value = summed.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / SIZE + eps)
    normed = (value * scale).to(dtype).to(tl.float32)
    gain = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + i, (normed * gain).to(dtype), mask=inside)


@overload
def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
@overload
def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...
def rms_norm_triton(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """See quire_kernels.rms_norm."""
    assert x.dim() in (2, 3) and x.stride(-1) == 1
    assert residual is None or (residual.is_contiguous() and residual.shape == x.shape)
    size, num_heads = x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        block = triton.next_power_of_2(size)
        rms_norm_kernel[(x.numel() // size,)](
            x,
            weight,
            x if residual is None else residual,
            out,
            x.stride(0),
            x.stride(1),
            num_heads,
            eps,
            SIZE=size,
            BLOCK=block,
            HAS_RESIDUAL=residual is not None,
            num_warps=warps_for(block),
        )
    return out if residual is None else (out, residual)
