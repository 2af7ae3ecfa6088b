"""Products of matrices of FP8 (E4M3) with scales.

`matmul_fp8`, a scale for each token and each output (or one for all outputs):

    x         [T, K] float8_e4m3fn      contiguous
    x_scales  [T, 1] float32
    weight    [N, K] float8_e4m3fn      contiguous
    w_scales  [N] or [1] float32
    out       [T, N]                    bfloat16 or float16: sum over k of (x * x_scales) * (weight * w_scales)

`matmul_fp8_blocks`, a scale for each 128 numbers of a token and each 128 x 128 block of the weight (DeepSeek-V3, arXiv 2412.19437):

    x_scales  [T, ceil(K / 128)] float32      contiguous
    w_scales  [ceil(N / 128), ceil(K / 128)] float32   contiguous

Sums are float32.
"""

import torch
from torch import Tensor

SCALE_BLOCK = 128


def matmul_fp8_reference(
    x_TK: Tensor, x_scales: Tensor, weight_NK: Tensor, w_scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The dequantised matrices' product in float32."""
    return ((x_TK.float() * x_scales) @ (weight_NK.float() * w_scales[:, None]).T).to(dtype)


def matmul_fp8_blocks_reference(
    x_TK: Tensor, x_scales: Tensor, weight_NK: Tensor, w_scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The dequantised matrices' product in float32."""
    (num_outputs, size), block = weight_NK.shape, SCALE_BLOCK
    x = x_TK.float() * x_scales.repeat_interleave(block, 1)[:, :size]
    spread = w_scales.repeat_interleave(block, 0)[:num_outputs].repeat_interleave(block, 1)[:, :size]
    return (x @ (weight_NK.float() * spread).T).to(dtype)


def matmul_fp8_torch(
    x_TK: Tensor, x_scales: Tensor, weight_NK: Tensor, w_scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """cuBLASLt through torch. It wants 16-byte rows: K and N are multiples of 16."""
    num_tokens, num_outputs = x_TK.shape[0], weight_NK.shape[0]
    assert x_TK.shape[1] % 16 == 0 and num_outputs % 16 == 0
    per_output = w_scales.expand(num_outputs).contiguous()[None]
    out: Tensor = torch._scaled_mm(
        x_TK, weight_NK.t(), scale_a=x_scales.view(num_tokens, 1), scale_b=per_output, out_dtype=dtype
    )
    return out
