"""CPU path of rms_norm: fewer calls than the reference. See quire_kernels.rms_norm for the table."""

from typing import overload

import torch.nn.functional as F
from torch import Tensor


@overload
def rms_norm_cpu(x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
@overload
def rms_norm_cpu(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...
def rms_norm_cpu(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """The same bits as the reference: without a weight, torch's own norm is float32 inside and rounds once, at its end."""
    if residual is not None:
        x = residual.add_(x)
    out = F.rms_norm(x, x.shape[-1:], None, eps).mul_(weight)
    return out if residual is None else (out, residual)
