"""Quantisation of activations to FP8 (E4M3), with a scale for each token or for each group of a token's numbers.

    x       [T, E]          any float dtype; any stride over T
    group   int | None      numbers that share a scale, dividing E; None: all E
    values  [T, E]          float8_e4m3fn, contiguous: x / scale, to nearest
    scales  [T, E / group]  float32, contiguous: largest magnitude / 448; 1 where all are 0

Dequantised: values * scales. The relative error of a number is at most 1/16, that of small ones up to scale / 1024.
Source: Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433.
"""

import torch
from torch import Tensor

from quire_kernels.rms_norm import rms_norm_reference
from quire_kernels.silu_mul import silu_mul_reference

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def quantize_fp8_reference(x_TE: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """(values, scales), in plain torch."""
    num_tokens, size = x_TE.shape
    grouped = x_TE.float().reshape(num_tokens, -1, group or size)
    scales = grouped.abs().amax(-1) / FP8_MAX
    scales = torch.where(scales == 0, 1.0, scales)
    values = (grouped / scales[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return values.view(num_tokens, size), scales


def silu_mul_fp8_reference(gate_up_TF: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """silu_mul and its quantisation: gate_up [T, 2F] -> values [T, F], scales. What is quantised was rounded to gate_up's dtype."""
    return quantize_fp8_reference(silu_mul_reference(gate_up_TF), group)


def rms_norm_fp8_reference(
    x_TE: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, group: int | None = None
) -> tuple[Tensor, Tensor]:
    """rms_norm and its quantisation; a residual is updated in place and is what is normalised, as in rms_norm."""
    if residual is None:
        return quantize_fp8_reference(rms_norm_reference(x_TE, weight, eps), group)
    return quantize_fp8_reference(rms_norm_reference(x_TE, weight, eps, residual)[0], group)
