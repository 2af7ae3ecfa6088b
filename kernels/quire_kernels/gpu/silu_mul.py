# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of silu_mul. See quire_kernels.silu_mul for the table.

Grid (T, tiles of F): one program makes one tile of one row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.launch_configs import row_config


@triton.jit
def silu_mul_kernel(gate_up, out, stride_t, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    gate = tl.load(gate_up + row * stride_t + i, mask=inside, other=0.0)
    up = tl.load(gate_up + row * stride_t + size + i, mask=inside, other=0.0)
    gate_fp32 = gate.to(tl.float32)
    activated = (gate_fp32 / (1.0 + tl.exp(-gate_fp32))).to(gate.dtype).to(tl.float32)
    tl.store(out + row * size + i, (activated * up.to(tl.float32)).to(gate.dtype), mask=inside)


def silu_mul_triton(gate_up_TF: Tensor) -> Tensor:
    """See quire_kernels.silu_mul."""
    assert gate_up_TF.stride(1) == 1
    num_tokens, size = gate_up_TF.shape[0], gate_up_TF.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up_TF.dtype, device=gate_up_TF.device)
    if num_tokens:
        config = row_config("silu_mul")
        grid = (num_tokens, triton.cdiv(size, config.block))
        silu_mul_kernel[grid](
            gate_up_TF, out, gate_up_TF.stride(0), size, BLOCK=config.block, num_warps=config.num_warps
        )
    return out
