"""Launches the Triton kernels of paged attention. See quire_kernels.paged_attention for the table.

Rows of at most MAX_QUERIES queries (decoding, speculation) go to the decode kernels, which divide their keys over the device; longer ones
to the prefill kernel. A step that has both launches both: each skips the other's rows. No launch depends on what only the device
knows, so any of them can be captured in a graph and replayed with other lengths.

`batch_invariant` makes a query's bits independent of its row's company and of how its row was cut into chunks: fixed splits, one tile
shape, and the same order of summation in both kernels.
"""

import math
from dataclasses import replace

import torch
import triton
from torch import Tensor

from quire_kernels.gpu.decode_attention import decode_kernel, reduce_kernel
from quire_kernels.gpu.decode_plan import MAX_QUERIES, DecodePlan, plan_decode
from quire_kernels.gpu.prefill_attention import prefill_kernel
from quire_kernels.launch_configs import AttentionConfig, attention_config

REDUCE_SPLITS = 16
"""Splits that the reduce kernel adds at once."""
INVARIANT_SPLIT_LEN = 1024
"""Partial results of a long context stay few, and a context of 8 of them still spreads over the device."""
INVARIANT_BLOCK_M = 64
"""The same matrix instructions for one query as for many: wgmma takes 64 rows."""
INVARIANT_FLOAT32_BLOCK_M = 32
"""Float32 has no matrix instructions, and registers for no more rows."""
MAX_DECODE_LANES = 64
"""Lanes of a decode program; a row of more takes several programs."""


def plan_attention_triton(
    k_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    *,
    window: int | None,
    batch_invariant: bool = False,
) -> DecodePlan:
    """How the decode rows' keys are divided; one small kernel."""
    return plan_decode(
        query_starts,
        seq_lens,
        num_kv_heads=k_cache.shape[1],
        max_keys=block_tables.shape[1] * k_cache.shape[2],
        window=window or 0,
        split_len=INVARIANT_SPLIT_LEN if batch_invariant else 0,
    )


def paged_attention_triton(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int | None,
    max_query_len: int,
    max_seq_len: int,
    plan: object = None,
    out: Tensor | None = None,
    kv_scales: Tensor | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    """See the module. `max_seq_len` is not used."""
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    num_heads = q_THD.shape[1]
    assert block_size % 16 == 0 and num_heads % num_kv_heads == 0 and scale > 0
    assert q_THD.stride()[1:] == (head_dim, 1) and block_tables.stride(1) == 1
    assert k_cache.stride() == v_cache.stride() and k_cache.stride()[1:] == (block_size * head_dim, head_dim, 1)
    assert k_cache.stride(0) % (head_dim & -head_dim) == 0, "tiles are loaded 16 bytes at a time"
    if out is None:
        out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    tensors = (q_THD, k_cache, v_cache, kv_scales, out)
    num_rows = seq_lens.shape[0]
    if q_THD.shape[0] == 0 or num_rows == 0:
        return out
    if num_rows > 1 or max_query_len <= MAX_QUERIES:
        if plan is None:
            plan = plan_attention_triton(
                k_cache, block_tables, query_starts, seq_lens, window=window, batch_invariant=batch_invariant
            )
        assert isinstance(plan, DecodePlan) and plan.window == (window or 0)
        # Two variants of the kernel, not one for each number of queries that a step may happen to have.
        _launch_decode(*tensors, block_tables, plan, scale, 1 if max_query_len == 1 else MAX_QUERIES)
    if max_query_len > MAX_QUERIES:
        split_len = INVARIANT_SPLIT_LEN if batch_invariant else 0
        _launch_prefill(*tensors, block_tables, query_starts, seq_lens, scale, window or 0, split_len)
    return out


def keys_per_tile(block_size: int, most: int) -> int:
    """The largest tile of at most `most` keys that is whole blocks or part of one: a power of two, at least 16."""
    part = block_size & -block_size
    return min(part, most) if part != block_size else most


def invariant_config(head_dim: int, element_bytes: int) -> AttentionConfig:
    """Of both kernels in batch-invariant mode."""
    table = attention_config("prefill", head_dim, element_bytes)
    if element_bytes == 4:
        return replace(table, block_m=min(table.block_m, INVARIANT_FLOAT32_BLOCK_M))
    return replace(table, block_m=INVARIANT_BLOCK_M, num_warps=8)


def _launch_prefill(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_scales: Tensor | None,
    out: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int,
    split_len: int,
) -> None:
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    group = q_THD.shape[1] // num_kv_heads
    size = q_THD.element_size()
    config = invariant_config(head_dim, size) if split_len else attention_config("prefill", head_dim, size)
    block_m = max(config.block_m, triton.next_power_of_2(group))
    num_rows = seq_lens.shape[0]
    grid = (q_THD.shape[0] // (block_m // group) + num_rows, num_kv_heads)
    prefill_kernel[grid](
        q_THD,
        k_cache,
        v_cache,
        kv_scales,
        out,
        block_tables,
        query_starts,
        seq_lens,
        scale * math.log2(math.e),
        num_rows,
        q_THD.stride(0),
        k_cache.stride(0),
        block_tables.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOW=window,
        BLOCK_M=block_m,
        BLOCK_N=keys_per_tile(block_size, config.block_n),
        SPLIT_LEN=split_len,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _launch_decode(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_scales: Tensor | None,
    out: Tensor,
    block_tables: Tensor,
    plan: DecodePlan,
    scale: float,
    max_queries: int,
) -> None:
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    num_heads = q_THD.shape[1]
    group, size = num_heads // num_kv_heads, q_THD.element_size()
    lanes, num_items = group * max_queries, plan.items.shape[0]
    config = invariant_config(head_dim, size) if plan.split_len else attention_config("decode", head_dim, size)
    block_m = config.block_m
    if not plan.split_len:
        block_m = max(block_m, min(MAX_DECODE_LANES, triton.next_power_of_2(lanes)))
    partial_acc = torch.empty((num_items, num_kv_heads, lanes, head_dim), dtype=torch.float32, device=q_THD.device)
    partial_sums = torch.empty((num_items, num_kv_heads, lanes, 2), dtype=torch.float32, device=q_THD.device)
    decode_kernel[(num_items, num_kv_heads, triton.cdiv(lanes, block_m))](
        q_THD,
        k_cache,
        v_cache,
        kv_scales,
        out,
        partial_acc,
        partial_sums,
        block_tables,
        plan.items,
        scale * math.log2(math.e),
        q_THD.stride(0),
        k_cache.stride(0),
        block_tables.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOW=plan.window,
        BLOCK_M=block_m,
        BLOCK_N=keys_per_tile(block_size, config.block_n),
        LANES=lanes,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    block_s = 1 if plan.split_len else REDUCE_SPLITS
    reduce_kernel[(plan.rows.shape[0], num_heads)](
        partial_acc,
        partial_sums,
        out,
        plan.rows,
        GROUP=group,
        HEAD_DIM=head_dim,
        LANES=lanes,
        BLOCK_S=block_s,
        num_warps=max(1, min(8, block_s * head_dim // 512)),
    )
