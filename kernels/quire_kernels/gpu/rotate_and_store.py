# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of rotate_and_store. See quire_kernels.rotate_and_store for the table.

Grid (T, 2): one program normalises and rotates a token's query heads, the other its key heads, which it writes to the cache with the
values. Queries go to a new tensor: a number and its partner in the rotation are read by different threads, so nothing may change in place.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.gpu.store_kv import to_fp8
from quire_kernels.launch_configs import warps_for
from quire_kernels.rotate_and_store import CacheTarget


@triton.jit
def _normed_and_rotated(x, weight, angles, eps, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr):
    """[heads, dims] of the token at x, in its dtype; `weight` None: not normalised."""
    heads = tl.arange(0, triton.next_power_of_2(NUM_HEADS))[:, None]
    i = tl.arange(0, triton.next_power_of_2(HEAD_DIM))[None, :]
    turns = i < 2 * HALF
    partner = tl.where(turns, tl.where(i < HALF, i + HALF, i - HALF), i)
    inside = (heads < NUM_HEADS) & (i < HEAD_DIM)
    own = tl.load(x + heads * HEAD_DIM + i, mask=inside, other=0.0)
    other = tl.load(x + heads * HEAD_DIM + partner, mask=inside, other=0.0)
    dtype = own.dtype
    if weight is not None:
        wide = own.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, 1) / HEAD_DIM + eps)[:, None]
        own_gain = tl.load(weight + i, mask=i < HEAD_DIM, other=0.0).to(tl.float32)
        other_gain = tl.load(weight + partner, mask=i < HEAD_DIM, other=0.0).to(tl.float32)
        own = ((wide * scale).to(dtype).to(tl.float32) * own_gain).to(dtype)
        other = ((other.to(tl.float32) * scale).to(dtype).to(tl.float32) * other_gain).to(dtype)
    cos = tl.load(angles + i % HALF, mask=turns, other=1.0).to(dtype).to(tl.float32)
    sin = tl.load(angles + HALF + i % HALF, mask=turns, other=0.0).to(dtype).to(tl.float32)
    # Each product is rounded to the dtype before the sum, as the reference does it.
    own_cos = (own.to(tl.float32) * cos).to(dtype).to(tl.float32)
    other_sin = (other.to(tl.float32) * sin).to(dtype).to(tl.float32)
    return tl.where(turns, (own_cos + tl.where(i < HALF, -other_sin, other_sin)).to(dtype), own)


# A later group's slots begin where the number of tokens says.
@triton.jit(do_not_specialize_on_alignment=["slots"])
def rotate_and_store_kernel(
    q,
    k,
    v,
    q_out,
    k_cache,
    v_cache,
    positions,
    cos_sin,
    slots,
    q_weight,
    k_weight,
    kv_scales,
    stride_t,
    cache_stride_n,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    angles = cos_sin + tl.load(positions + token) * (2 * HALF)
    i = tl.arange(0, triton.next_power_of_2(HEAD_DIM))[None, :]
    if tl.program_id(1) == 0:
        turned = _normed_and_rotated(q + token * stride_t, q_weight, angles, eps, NUM_HEADS, HEAD_DIM, HALF)
        heads = tl.arange(0, triton.next_power_of_2(NUM_HEADS))[:, None]
        at = q_out + token * NUM_HEADS * HEAD_DIM + heads * HEAD_DIM + i
        tl.store(at, turned, mask=(heads < NUM_HEADS) & (i < HEAD_DIM))
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            keys = _normed_and_rotated(k + token * stride_t, k_weight, angles, eps, NUM_KV_HEADS, HEAD_DIM, HALF)
            heads = tl.arange(0, triton.next_power_of_2(NUM_KV_HEADS))[:, None]
            inside = (heads < NUM_KV_HEADS) & (i < HEAD_DIM)
            values = tl.load(v + token * stride_t + heads * HEAD_DIM + i, mask=inside)
            if kv_scales is not None:
                keys = to_fp8(keys, tl.load(kv_scales + heads, mask=heads < NUM_KV_HEADS, other=1.0))
                v_scale = tl.load(kv_scales + NUM_KV_HEADS + heads, mask=heads < NUM_KV_HEADS, other=1.0)
                values = to_fp8(values, v_scale)
            target = (slot // BLOCK_SIZE) * cache_stride_n + (slot % BLOCK_SIZE) * HEAD_DIM
            target += heads * (BLOCK_SIZE * HEAD_DIM) + i
            tl.store(k_cache + target, keys, mask=inside)
            tl.store(v_cache + target, values, mask=inside)


def rotate_and_store_triton(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    target: CacheTarget,
    *,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> Tensor:
    """See quire_kernels.rotate_and_store."""
    num_tokens, num_heads, head_dim = q_THD.shape
    num_kv_heads, block_size = target.k_cache.shape[1:3]
    assert q_THD.stride() == k_THD.stride() == v_THD.stride() and q_THD.stride()[1:] == (head_dim, 1)
    assert target.k_cache.stride() == target.v_cache.stride()
    assert target.k_cache.stride()[1:] == (block_size * head_dim, head_dim, 1) and cos_sin.is_contiguous()
    q_weight, k_weight = norms or (None, None)
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=q_THD.dtype, device=q_THD.device)
    if num_tokens:
        rotate_and_store_kernel[(num_tokens, 2)](
            q_THD,
            k_THD,
            v_THD,
            out,
            target.k_cache,
            target.v_cache,
            positions,
            cos_sin,
            target.slots,
            q_weight,
            k_weight,
            target.kv_scales,
            q_THD.stride(0),
            target.k_cache.stride(0),
            eps,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            HALF=cos_sin.shape[1] // 2,
            BLOCK_SIZE=block_size,
            num_warps=warps_for(triton.next_power_of_2(num_heads) * triton.next_power_of_2(head_dim)),
        )
    return out
