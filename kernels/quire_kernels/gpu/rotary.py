# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of apply_rotary. See quire_kernels.rotary for the table.

Grid (T,): one program rotates one token in place, all heads of q and k.
"""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.launch_configs import warps_for


@triton.jit
def _rotate_heads(
    x, cos, sin, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """x points at the token's first head; cos and sin are [1, BLOCK], of which HALF count."""
    heads = tl.arange(0, triton.next_power_of_2(NUM_HEADS))[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    inside = (heads < NUM_HEADS) & (i < HALF)
    first_at = x + heads * HEAD_DIM + i
    first = tl.load(first_at, mask=inside, other=0.0)
    second = tl.load(first_at + HALF, mask=inside, other=0.0)
    dtype = first.dtype
    cos, sin = cos.to(dtype).to(tl.float32), sin.to(dtype).to(tl.float32)
    first, second = first.to(tl.float32), second.to(tl.float32)
    # Each product is rounded to the dtype before the sum, as the reference does it.
    first_cos, second_sin = (first * cos).to(dtype).to(tl.float32), (second * sin).to(dtype).to(tl.float32)
    second_cos, first_sin = (second * cos).to(dtype).to(tl.float32), (first * sin).to(dtype).to(tl.float32)
    tl.store(first_at, (first_cos - second_sin).to(dtype), mask=inside)
    tl.store(first_at + HALF, (second_cos + first_sin).to(dtype), mask=inside)


@triton.jit
def rotary_kernel(
    q,
    k,
    positions,
    cos_sin,
    q_stride_t,
    k_stride_t,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)[None, :]
    angles = cos_sin + tl.load(positions + token) * (2 * HALF) + i
    cos = tl.load(angles, mask=i < HALF, other=0.0)
    sin = tl.load(angles + HALF, mask=i < HALF, other=0.0)
    _rotate_heads(q + token * q_stride_t, cos, sin, NUM_HEADS, HEAD_DIM, HALF, BLOCK)
    _rotate_heads(k + token * k_stride_t, cos, sin, NUM_KV_HEADS, HEAD_DIM, HALF, BLOCK)


def apply_rotary_triton(q_THD: Tensor, k_THD: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k themselves, rotated in place."""
    num_tokens, num_heads, head_dim = q_THD.shape
    assert q_THD.stride()[1:] == k_THD.stride()[1:] == (head_dim, 1), "heads and dims must be contiguous"
    assert cos_sin.is_contiguous()
    if num_tokens:
        half = cos_sin.shape[1] // 2
        block = triton.next_power_of_2(half)
        rotary_kernel[(num_tokens,)](
            q_THD,
            k_THD,
            positions,
            cos_sin,
            q_THD.stride(0),
            k_THD.stride(0),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=k_THD.shape[1],
            HEAD_DIM=head_dim,
            HALF=half,
            BLOCK=block,
            num_warps=warps_for(block * triton.next_power_of_2(num_heads)),
        )
    return q_THD, k_THD
