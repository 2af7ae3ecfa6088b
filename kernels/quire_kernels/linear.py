"""A linear layer's product.

    x       [T, K]    any stride over T
    weight  [N, K]    contiguous, x's dtype
    bias    [N]       x's dtype; or None
    out     [T, N]    contiguous, x's dtype

Sums are float32, or as exact as the library makes them; the bias is added before they are rounded.
"""

import torch.nn.functional as F
from torch import Tensor


def linear_reference(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """The library's, which on a GPU is the fast way as well."""
    return F.linear(x_TK, weight_NK, bias_N)
