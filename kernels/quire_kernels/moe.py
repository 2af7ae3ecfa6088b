"""Experts of a mixture, all at once: each token's experts' MLPs, summed by the router's weights.

    x          [T, E]            hidden states; any stride over T
    weights    [T, K] float32    the router's
    experts    [T, K] int64      ascending in each token; -1: none
    gate_up    [X, 2F, E]        gate in an expert's first F rows, up in the others; contiguous
    down       [X, E, F]         contiguous
    out        [T, E]            contiguous, x's dtype

An expert's output is rounded to x's dtype, as are gate, up and their silu_mul; the sum over a token's experts runs in float32 in the order
given, so it does not depend on the other tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_kernels.silu_mul import silu_mul_reference


def moe_reference(
    x_TE: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_XFE: Tensor, down_XEF: Tensor
) -> Tensor:
    """Expert by expert."""
    outputs = torch.zeros((*experts_TK.shape, x_TE.shape[1]), dtype=x_TE.dtype, device=x_TE.device)
    for expert in range(gate_up_XFE.shape[0]):
        tokens, places = (experts_TK == expert).nonzero(as_tuple=True)
        if len(tokens):
            hidden = silu_mul_reference(F.linear(x_TE[tokens], gate_up_XFE[expert]))
            outputs[tokens, places] = F.linear(hidden, down_XEF[expert])
    total = torch.zeros(x_TE.shape, device=x_TE.device)
    for place in range(experts_TK.shape[1]):
        total += outputs[:, place] * weights_TK[:, place : place + 1]
    return total.to(x_TE.dtype)
