"""Experts of a mixture, all at once, in FP8 (W8A8). See quire_kernels.moe for what is the same.

    x               [T, E]           hidden states, bfloat16 on a GPU; any stride over T
    weights         [T, K] float32   the router's
    experts         [T, K] int64     ascending in each token; -1: none
    gate_up         [X, 2F, E]       float8_e4m3fn: gate in an expert's first F rows, up in the others; contiguous
    gate_up_scales  [X, 2F] float32  or, by blocks,  [X, 2F / 128, E / 128]; contiguous
    down            [X, E, F]        float8_e4m3fn; contiguous
    down_scales     [X, E] float32   or, by blocks,  [X, E / 128, F / 128]; contiguous
    out             [T, E]           contiguous, x's dtype

By blocks, E and F are multiples of 128, and 128 numbers of a token share a scale; else all of a token's do. x is quantised once; what an
expert's gate and up give, rounded to x's dtype as moe does it, is quantised again. See quire_kernels.quantize_fp8 and matmul_fp8.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire_kernels.matmul_fp8 import SCALE_BLOCK, matmul_fp8_blocks_reference, matmul_fp8_reference
from quire_kernels.quantize_fp8 import quantize_fp8_reference, silu_mul_fp8_reference


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Experts:
    """Weights and their scales. See the module's table."""

    gate_up: Tensor
    gate_up_scales: Tensor
    down: Tensor
    down_scales: Tensor

    @property
    def group(self) -> int | None:
        """Numbers of a token that share a scale; None: all."""
        return SCALE_BLOCK if self.gate_up_scales.dim() == 3 else None


def moe_fp8_reference(x_TE: Tensor, weights_TK: Tensor, experts_TK: Tensor, stacks: Fp8Experts) -> Tensor:
    """Expert by expert."""
    group, dtype = stacks.group, x_TE.dtype
    multiply = matmul_fp8_reference if group is None else matmul_fp8_blocks_reference
    values, scales = quantize_fp8_reference(x_TE, group)
    outputs = torch.zeros((*experts_TK.shape, x_TE.shape[1]), dtype=dtype, device=x_TE.device)
    for expert in range(stacks.down.shape[0]):
        tokens, places = (experts_TK == expert).nonzero(as_tuple=True)
        if len(tokens):
            up = multiply(values[tokens], scales[tokens], stacks.gate_up[expert], stacks.gate_up_scales[expert], dtype)
            hidden = silu_mul_fp8_reference(up, group)
            outputs[tokens, places] = multiply(*hidden, stacks.down[expert], stacks.down_scales[expert], dtype)
    total = torch.zeros(x_TE.shape, device=x_TE.device)
    for place in range(experts_TK.shape[1]):
        total += outputs[:, place] * weights_TK[:, place : place + 1]
    return total.to(dtype)
