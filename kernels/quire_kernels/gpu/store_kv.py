# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of store_kv and store_kv_fp8. See quire_kernels.store_kv for the tables.

Grid (T,): one program copies one token, all heads, keys and values.
"""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.launch_configs import warps_for


@triton.jit
def to_fp8(x, scale):
    """x / scale as float8_e4m3fn; what is too large becomes the largest."""
    scaled = tl.div_rn(x.to(tl.float32), scale)
    return tl.minimum(tl.maximum(scaled, -448.0), 448.0).to(tl.float8e4nv)


# A later group's slots begin where the number of tokens says.
@triton.jit(do_not_specialize_on_alignment=["slots"])
def store_kv_kernel(
    k,
    v,
    k_cache,
    v_cache,
    slots,
    kv_scales,
    k_stride_t,
    v_stride_t,
    cache_stride_n,
    cache_stride_h,
    BLOCK_SIZE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        i = tl.arange(0, BLOCK)
        inside = i < NUM_HEADS * HEAD_DIM
        slot_offset = (slot // BLOCK_SIZE) * cache_stride_n + (slot % BLOCK_SIZE) * HEAD_DIM
        target = slot_offset + (i // HEAD_DIM) * cache_stride_h + i % HEAD_DIM
        keys = tl.load(k + token * k_stride_t + i, mask=inside)
        values = tl.load(v + token * v_stride_t + i, mask=inside)
        if kv_scales is not None:
            keys = to_fp8(keys, tl.load(kv_scales + i // HEAD_DIM, mask=inside, other=1.0))
            values = to_fp8(values, tl.load(kv_scales + NUM_HEADS + i // HEAD_DIM, mask=inside, other=1.0))
        tl.store(k_cache + target, keys, mask=inside)
        tl.store(v_cache + target, values, mask=inside)


def store_kv_triton(
    k_THD: Tensor, v_THD: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, kv_scales: Tensor | None = None
) -> None:
    """See quire_kernels.store_kv."""
    num_tokens, num_heads, head_dim = k_THD.shape
    assert k_THD.stride()[1:] == v_THD.stride()[1:] == (head_dim, 1), "heads and dims must be contiguous"
    assert k_cache.stride() == v_cache.stride() and k_cache.stride()[2:] == (head_dim, 1)
    if num_tokens == 0:
        return
    block = triton.next_power_of_2(num_heads * head_dim)
    store_kv_kernel[(num_tokens,)](
        k_THD,
        v_THD,
        k_cache,
        v_cache,
        slots,
        kv_scales,
        k_THD.stride(0),
        v_THD.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        BLOCK_SIZE=k_cache.shape[2],
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        BLOCK=block,
        num_warps=warps_for(block),
    )
