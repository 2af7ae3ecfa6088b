# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of paged attention for rows of many queries. See quire_kernels.paged_attention for the table.

Grid (tiles, Hkv): a tile packs BLOCK_M // G queries of one row with the G heads that share a kv head. There are at most
T // queries + R tiles; a program finds its row by bisection, so the host needs no lengths. Later tiles have more keys and start first.
Rows of at most MAX_QUERIES queries are the decode kernel's.

SPLIT_LEN > 0 sums split by split, as the decode kernels do: a query's bits are then the same in either.
"""

import triton
import triton.language as tl

from quire_kernels.gpu.attention_tile import attend_keys, fold_weights
from quire_kernels.gpu.decode_plan import MOST_QUERIES


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


@triton.jit(do_not_specialize=["num_rows", "table_stride_r"], do_not_specialize_on_alignment=["block_tables"])
def prefill_kernel(
    q,
    k_cache,
    v_cache,
    kv_scales,
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
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_LEN: tl.constexpr,
):
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM) if HEAD_DIM > 16 else 16
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    row = _row_of_tile(query_starts, tile, num_rows, QUERIES)
    row_start = tl.load(query_starts + row)
    num_queries = tl.load(query_starts + row + 1) - row_start
    first_query = (tile - row_start // QUERIES - row) * QUERIES
    seq_len = tl.load(seq_lens + row)
    if (first_query < num_queries) & (num_queries > MOST_QUERIES) & (seq_len > 0):
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
        if kv_scales is not None:
            scale_log2 *= tl.load(kv_scales + kv_head)

        k_head = k_cache + kv_head * BLOCK_SIZE * HEAD_DIM
        v_head = v_cache + kv_head * BLOCK_SIZE * HEAD_DIM
        table = block_tables + row.to(tl.int64) * table_stride_r
        first_key = 0
        full_from = 0
        if WINDOW > 0:
            first_key = tl.maximum(first_position - WINDOW + 1, 0)
            full_from = tl.cdiv(tl.maximum(last_position - WINDOW + 1, 0), BLOCK_N) * BLOCK_N
        full_to = (first_position + 1) // BLOCK_N * BLOCK_N
        end = last_position + 1
        if SPLIT_LEN > 0:
            acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_M,), tl.float32)
            for split in range(first_key // SPLIT_LEN * SPLIT_LEN, end, SPLIT_LEN):
                begin = tl.maximum(split, first_key // BLOCK_N * BLOCK_N)
                part_acc, part_largest, part_total = attend_keys(
                    q_MD, k_head, v_head, table, positions, begin, tl.minimum(split + SPLIT_LEN, end), first_key,
                    full_from, full_to, seq_len, cache_stride_n, scale_log2, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_N,
                )  # fmt: skip
                largest, shrink, reference = fold_weights(largest, part_largest)
                weight = tl.exp2(part_largest - reference)
                acc = tl.fma(acc, shrink[:, None], part_acc * weight[:, None])
                total = tl.fma(total, shrink, part_total * weight)
        else:
            acc, largest, total = attend_keys(
                q_MD, k_head, v_head, table, positions, first_key // BLOCK_N * BLOCK_N, end, first_key,
                full_from, full_to, seq_len, cache_stride_n, scale_log2, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_N,
            )  # fmt: skip

        acc = acc / total[:, None]
        if kv_scales is not None:
            acc *= tl.load(kv_scales + tl.num_programs(1) + kv_head)
        num_heads = tl.num_programs(1) * GROUP
        out_at = out + (token * num_heads + head)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out_at, acc.to(out.dtype.element_ty), mask=is_value)
