# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of quantize_fp8, silu_mul_fp8 and rms_norm_fp8. See quire_kernels.quantize_fp8 for the table.

Grid (T, tiles of groups): a program reads its part of a token once, makes what is to be quantised in registers, finds each group's largest
magnitude, and writes. A part is all of a token where a norm or one scale needs all of it, else GROUPS_TOGETHER groups.

What is wider than WIDEST is made by the operation alone and quantised in a second pass: registers would not hold it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.gpu.rms_norm import rms_norm_triton
from quire_kernels.gpu.silu_mul import silu_mul_triton
from quire_kernels.launch_configs import warps_for
from quire_kernels.quantize_fp8 import FP8

WIDEST = 16384
"""Numbers of a token that one program makes and quantises."""
GROUPS_TOGETHER = 16
PLAIN, SILU_MUL, RMS_NORM = (tl.constexpr(kind) for kind in range(3))


@triton.jit
def quantize_fp8_kernel(
    x,
    weight,
    residual,
    values,
    scales,
    stride_t,
    eps,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    WORK: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """SIZE numbers of output a token, TOGETHER groups of them a program; weight and residual are read for RMS_NORM alone, and residual may
    be None."""
    GROUPS: tl.constexpr = SIZE // GROUP
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * TOGETHER + tl.arange(0, TOGETHER)
    place = tl.arange(0, triton.next_power_of_2(GROUP))
    i = group[:, None] * GROUP + place[None, :]
    inside = (group < GROUPS)[:, None] & (place < GROUP)[None, :]
    value = tl.load(x + token * stride_t + i, mask=inside, other=0.0)
    dtype = value.dtype
    value = value.to(tl.float32)
    if WORK == SILU_MUL:
        up = tl.load(x + token * stride_t + SIZE + i, mask=inside, other=0.0).to(tl.float32)
        activated = (value / (1.0 + tl.exp(-value))).to(dtype).to(tl.float32)
        value = (activated * up).to(dtype).to(tl.float32)
    if WORK == RMS_NORM:
        if residual is not None:
            before = tl.load(residual + token * SIZE + i, mask=inside, other=0.0).to(tl.float32)
            summed = (value + before).to(dtype)
            tl.store(residual + token * SIZE + i, summed, mask=inside)
            value = summed.to(tl.float32)
        scale = tl.rsqrt(tl.sum(tl.sum(value * value, 1), 0) / SIZE + eps)
        gain = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
        value = ((value * scale).to(dtype).to(tl.float32) * gain).to(dtype).to(tl.float32)
    scale = tl.div_rn(tl.max(tl.abs(value), 1), 448.0)
    scale = tl.where(scale == 0.0, 1.0, scale)
    scaled = tl.div_rn(value, tl.broadcast_to(scale[:, None], value.shape))
    scaled = tl.minimum(tl.maximum(scaled, -448.0), 448.0)
    tl.store(values + token * SIZE + i, scaled.to(tl.float8e4nv), mask=inside)
    tl.store(scales + token * GROUPS + group, scale, mask=group < GROUPS)


def quantize_fp8_triton(x_TE: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """See quire_kernels.quantize_fp8."""
    return _launch(x_TE, x_TE.shape[1], group, PLAIN)


def silu_mul_fp8_triton(gate_up_TF: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """See quire_kernels.quantize_fp8."""
    size = gate_up_TF.shape[1] // 2
    if group is None and size > WIDEST:
        return quantize_fp8_triton(silu_mul_triton(gate_up_TF))
    return _launch(gate_up_TF, size, group, SILU_MUL)


def rms_norm_fp8_triton(
    x_TE: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, group: int | None = None
) -> tuple[Tensor, Tensor]:
    """See quire_kernels.quantize_fp8."""
    assert residual is None or (residual.is_contiguous() and residual.shape == x_TE.shape)
    if x_TE.shape[1] > WIDEST:
        if residual is None:
            return quantize_fp8_triton(rms_norm_triton(x_TE, weight, eps), group)
        return quantize_fp8_triton(rms_norm_triton(x_TE, weight, eps, residual)[0], group)
    return _launch(x_TE, x_TE.shape[1], group, RMS_NORM, weight, eps, residual)


def _launch(
    x: Tensor,
    size: int,
    group: int | None,
    work: tl.constexpr,
    weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    group = group or size
    assert x.stride(1) == 1 and size % group == 0
    num_tokens, num_groups = x.shape[0], size // group
    values = torch.empty((num_tokens, size), dtype=FP8, device=x.device)
    scales = torch.empty((num_tokens, num_groups), dtype=torch.float32, device=x.device)
    if num_tokens:
        together = triton.next_power_of_2(num_groups)
        if work is not RMS_NORM:
            together = min(together, GROUPS_TOGETHER)
        quantize_fp8_kernel[(num_tokens, triton.cdiv(num_groups, together))](
            x,
            weight,
            residual,
            values,
            scales,
            x.stride(0),
            eps,
            SIZE=size,
            GROUP=group,
            WORK=work,
            TOGETHER=together,
            num_warps=warps_for(together * triton.next_power_of_2(group)),
        )
    return values, scales
