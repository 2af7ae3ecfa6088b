"""Root-mean-square normalisation, with the residual addition that comes before it.

    x         [..., E]    any leading dims and strides, E contiguous; also [T, H, D] for a norm per head
    weight    [E]
    residual  [..., E]    contiguous, x's shape; updated in place: residual += x, then residual is what is normalised
    out       [..., E]    contiguous, x's dtype

Rounding follows the checkpoints' own code (Hugging Face's LlamaRMSNorm): the sum in the input's dtype, the normalisation in
float32, cast to the input's dtype, then times the weight.
"""

from typing import overload

import torch
from torch import Tensor


@overload
def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
@overload
def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...
def rms_norm_reference(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """The normalised tensor; with a residual, also that residual, which now includes x."""
    if residual is not None:
        x = residual.add_(x)
    x_fp32 = x.float()
    scale = torch.rsqrt(x_fp32.pow(2).mean(-1, keepdim=True) + eps)
    out = weight * (x_fp32 * scale).to(x.dtype)
    return out if residual is None else (out, residual)
