# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Reads memory and does nothing else: what the fastest decode step could do.

    data  [n] bfloat16
    out   [programs] float32   each program's sum, so that no read can be left out

Grid: a few programs for each multiprocessor, each striding over the whole.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 132 * 8


@triton.jit
def read_kernel(data, out, size, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(program.to(tl.int64) * BLOCK, size, step):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(data + i, mask=i < size, other=0.0).to(tl.float32)
    tl.store(out + program, tl.sum(total))


def read_all(data: Tensor, block: int, num_warps: int) -> Tensor:
    """The programs' sums."""
    out = torch.empty(PROGRAMS, dtype=torch.float32, device=data.device)
    read_kernel[(PROGRAMS,)](data, out, data.numel(), BLOCK=block, num_warps=num_warps)
    return out
