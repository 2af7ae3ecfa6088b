# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of paged attention. See quire_kernels.paged_attention for the table.

prefill_kernel, any number of queries a row; grid (tiles, Hkv):
    A tile packs BLOCK_M // G queries of one row with the G heads that share a kv head. There are at most
    T // queries + R tiles; a program finds its row by bisection, so the host needs no lengths. Keys in three runs:

        first key           all queries see       last query
        |-- masked (window) --|---- unmasked ----|-- masked (diagonal) --|

decode_kernel, one query a row; grid (R, Hkv, splits), and reduce_kernel; grid (R, H):
    Each program attends one split of DECODE_SPLIT_LEN keys at a fixed position and writes a float32 partial result with its
    log2-sum; the second kernel adds a row's splits in order. A row's bits do not depend on the batch.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.gpu.attention_tile import attend_tile
from quire_kernels.launch_configs import DECODE_SPLIT_LEN, attention_config

REDUCE_SPLITS = 16
"""Splits that the reduce kernel adds at once."""


@triton.jit
def _row_of_tile(query_starts, tile, num_rows, QUERIES: tl.constexpr):
    """The row whose tiles include this one. Row r's begin at query_starts[r] // QUERIES + r: rows never share a number."""
    low = 0
    high = num_rows - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(query_starts + middle) // QUERIES + middle <= tile:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit(do_not_specialize=["num_rows"])
def prefill_kernel(
    q,
    k_cache,
    v_cache,
    out,
    block_tables,
    query_starts,
    seq_lens,
    scale_log2,
    num_rows,
    q_stride_t,
    cache_stride_n,
    table_stride_r,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    row = _row_of_tile(query_starts, tile, num_rows, QUERIES)
    row_start = tl.load(query_starts + row)
    num_queries = tl.load(query_starts + row + 1) - row_start
    first_query = (tile - row_start // QUERIES - row) * QUERIES
    seq_len = tl.load(seq_lens + row)
    if (first_query < num_queries) & (seq_len > 0):
        packed = tl.arange(0, BLOCK_M)
        query = first_query + packed // GROUP
        is_query = (packed < QUERIES * GROUP) & (query < num_queries)
        past = seq_len - num_queries
        first_position = past + first_query
        last_position = tl.minimum(first_position + QUERIES, seq_len) - 1
        # Rows of the tile that hold no query repeat the last one.
        positions = tl.minimum(past + query, last_position)

        dims = tl.arange(0, BLOCK_D)
        is_value = is_query[:, None] & (dims < HEAD_DIM)[None, :]
        head = kv_head * GROUP + packed % GROUP
        token = (row_start + query).to(tl.int64)
        q_at = q + token[:, None] * q_stride_t + head[:, None] * HEAD_DIM + dims[None, :]
        q_MD = tl.load(q_at, mask=is_value, other=0.0)

        k_head = k_cache + kv_head * BLOCK_SIZE * HEAD_DIM
        v_head = v_cache + kv_head * BLOCK_SIZE * HEAD_DIM
        table = block_tables + row.to(tl.int64) * table_stride_r
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)

        first_key = 0
        full_from = 0
        if WINDOW > 0:
            first_key = tl.maximum(first_position - WINDOW + 1, 0)
            full_from = tl.cdiv(tl.maximum(last_position - WINDOW + 1, 0), BLOCK_N) * BLOCK_N
        full_to = (first_position + 1) // BLOCK_N * BLOCK_N
        end = last_position + 1
        if WINDOW > 0:
            for start in range(first_key // BLOCK_N * BLOCK_N, tl.minimum(full_from, end), BLOCK_N):
                acc, largest, total = attend_tile(
                    q_MD, acc, largest, total, k_head, v_head, table, positions, start, first_key, seq_len,
                    cache_stride_n, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_SIZE, WINDOW, BLOCK_N, True,
                )  # fmt: skip
        for start in range(full_from, full_to, BLOCK_N):
            acc, largest, total = attend_tile(
                q_MD, acc, largest, total, k_head, v_head, table, positions, start, first_key, seq_len,
                cache_stride_n, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_SIZE, WINDOW, BLOCK_N, False,
            )  # fmt: skip
        for start in range(tl.maximum(full_from, full_to), end, BLOCK_N):
            acc, largest, total = attend_tile(
                q_MD, acc, largest, total, k_head, v_head, table, positions, start, first_key, seq_len,
                cache_stride_n, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_SIZE, WINDOW, BLOCK_N, True,
            )  # fmt: skip

        num_heads = tl.num_programs(1) * GROUP
        out_at = out + (token * num_heads + head)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out_at, (acc / total[:, None]).to(out.dtype.element_ty), mask=is_value)


@triton.jit
def decode_kernel(
    q,
    k_cache,
    v_cache,
    partial_out,
    partial_log2,
    block_tables,
    seq_lens,
    scale_log2,
    q_stride_t,
    cache_stride_n,
    table_stride_r,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_LEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    seq_len = tl.load(seq_lens + row)
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(seq_len - WINDOW, 0)
    begin = split * SPLIT_LEN
    end = tl.minimum(begin + SPLIT_LEN, seq_len)
    if (begin < seq_len) & (end > first_key):
        lanes = tl.arange(0, BLOCK_M)
        head = kv_head * GROUP + lanes
        dims = tl.arange(0, BLOCK_D)
        is_value = (lanes < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
        q_at = q + row * q_stride_t + head[:, None] * HEAD_DIM + dims[None, :]
        q_MD = tl.load(q_at, mask=is_value, other=0.0)

        k_head = k_cache + kv_head * BLOCK_SIZE * HEAD_DIM
        v_head = v_cache + kv_head * BLOCK_SIZE * HEAD_DIM
        table = block_tables + row * table_stride_r
        positions = tl.zeros((BLOCK_M,), tl.int32) + (seq_len - 1)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)

        masked_to = begin
        if WINDOW > 0:
            masked_to = tl.maximum(begin, tl.cdiv(first_key, BLOCK_N) * BLOCK_N)
            for start in range(tl.maximum(begin, first_key // BLOCK_N * BLOCK_N), tl.minimum(masked_to, end), BLOCK_N):
                acc, largest, total = attend_tile(
                    q_MD, acc, largest, total, k_head, v_head, table, positions, start, first_key, seq_len,
                    cache_stride_n, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_SIZE, WINDOW, BLOCK_N, True,
                )  # fmt: skip
        full_to = end // BLOCK_N * BLOCK_N
        for start in range(masked_to, full_to, BLOCK_N):
            acc, largest, total = attend_tile(
                q_MD, acc, largest, total, k_head, v_head, table, positions, start, first_key, seq_len,
                cache_stride_n, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_SIZE, WINDOW, BLOCK_N, False,
            )  # fmt: skip
        for start in range(tl.maximum(masked_to, full_to), end, BLOCK_N):
            acc, largest, total = attend_tile(
                q_MD, acc, largest, total, k_head, v_head, table, positions, start, first_key, seq_len,
                cache_stride_n, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_SIZE, WINDOW, BLOCK_N, True,
            )  # fmt: skip

        num_heads = tl.num_programs(1) * GROUP
        partial = (row * num_heads + head) * tl.num_programs(2) + split
        tl.store(partial_out + partial[:, None] * HEAD_DIM + dims[None, :], acc / total[:, None], mask=is_value)
        tl.store(partial_log2 + partial, largest + tl.log2(total), mask=lanes < GROUP)


@triton.jit(do_not_specialize=["num_splits"])
def reduce_kernel(
    partial_out,
    partial_log2,
    out,
    seq_lens,
    num_splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT_LEN: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = row * tl.num_programs(1) + tl.program_id(1)
    seq_len = tl.load(seq_lens + row)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(seq_len - WINDOW, 0) // SPLIT_LEN
    end = tl.cdiv(seq_len, SPLIT_LEN)
    dims = tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    largest = float("-inf")
    total = 0.0
    for first in range(begin, end, BLOCK_S):
        splits = first + tl.arange(0, BLOCK_S)
        is_split = splits < end
        log2_sums = tl.load(partial_log2 + at * num_splits + splits, mask=is_split, other=float("-inf"))
        values_at = partial_out + (at * num_splits + splits)[:, None] * HEAD_DIM + dims[None, :]
        values = tl.load(values_at, mask=is_split[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
        new_largest = tl.maximum(largest, tl.max(log2_sums))
        weights = tl.exp2(log2_sums - new_largest)
        shrink = tl.exp2(largest - new_largest)
        acc = acc * shrink + tl.sum(values * weights[:, None], 0)
        total = total * shrink + tl.sum(weights)
        largest = new_largest
    total = tl.where(total > 0.0, total, 1.0)
    tl.store(out + at * HEAD_DIM + dims, (acc / total).to(out.dtype.element_ty), mask=dims < HEAD_DIM)


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
) -> Tensor:
    """The decode kernels when every row has one query, else the prefill kernel. `plan` is not used."""
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    num_heads = q_THD.shape[1]
    assert block_size % 16 == 0 and num_heads % num_kv_heads == 0
    assert q_THD.stride()[1:] == (head_dim, 1) and block_tables.stride(1) == 1
    assert k_cache.stride() == v_cache.stride() and k_cache.stride()[1:] == (block_size * head_dim, head_dim, 1)
    if out is None:
        out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    if q_THD.shape[0] == 0:
        return out
    if max_query_len == 1 and q_THD.shape[0] == seq_lens.shape[0]:
        _launch_decode(q_THD, k_cache, v_cache, block_tables, seq_lens, out, scale, window or 0, max_seq_len)
    else:
        _launch_prefill(q_THD, k_cache, v_cache, block_tables, query_starts, seq_lens, out, scale, window or 0)
    return out


def keys_per_tile(block_size: int, most: int) -> int:
    """The largest tile of at most `most` keys that is whole blocks or part of one: a power of two, at least 16."""
    part = block_size & -block_size
    return min(part, most) if part != block_size else most


def _launch_prefill(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    out: Tensor,
    scale: float,
    window: int,
) -> None:
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    group = q_THD.shape[1] // num_kv_heads
    config = attention_config("prefill", head_dim, q_THD.element_size())
    block_m = max(config.block_m, triton.next_power_of_2(group))
    num_rows = seq_lens.shape[0]
    grid = (q_THD.shape[0] // (block_m // group) + num_rows, num_kv_heads)
    prefill_kernel[grid](
        q_THD,
        k_cache,
        v_cache,
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
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_SIZE=block_size,
        WINDOW=window,
        BLOCK_M=block_m,
        BLOCK_N=keys_per_tile(block_size, config.block_n),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _launch_decode(
    q_RHD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    out: Tensor,
    scale: float,
    window: int,
    max_seq_len: int,
) -> None:
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    num_rows, num_heads = q_RHD.shape[:2]
    group, num_splits = num_heads // num_kv_heads, triton.cdiv(max_seq_len, DECODE_SPLIT_LEN)
    config = attention_config("decode", head_dim, q_RHD.element_size())
    block_d = max(16, triton.next_power_of_2(head_dim))
    partial_shape = (num_rows, num_heads, num_splits)
    partial_out = torch.empty((*partial_shape, head_dim), dtype=torch.float32, device=q_RHD.device)
    partial_log2 = torch.empty(partial_shape, dtype=torch.float32, device=q_RHD.device)
    decode_kernel[(num_rows, num_kv_heads, num_splits)](
        q_RHD,
        k_cache,
        v_cache,
        partial_out,
        partial_log2,
        block_tables,
        seq_lens,
        scale * math.log2(math.e),
        q_RHD.stride(0),
        k_cache.stride(0),
        block_tables.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_SIZE=block_size,
        WINDOW=window,
        BLOCK_M=max(config.block_m, triton.next_power_of_2(group)),
        BLOCK_N=keys_per_tile(block_size, config.block_n),
        SPLIT_LEN=DECODE_SPLIT_LEN,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    reduce_kernel[(num_rows, num_heads)](
        partial_out,
        partial_log2,
        out,
        seq_lens,
        num_splits,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        WINDOW=window,
        SPLIT_LEN=DECODE_SPLIT_LEN,
        BLOCK_S=REDUCE_SPLITS,
        num_warps=warps_for_reduce(block_d),
    )


def warps_for_reduce(block_d: int) -> int:
    """The reduce kernel holds REDUCE_SPLITS x block_d numbers."""
    return max(1, min(8, REDUCE_SPLITS * block_d // 512))
