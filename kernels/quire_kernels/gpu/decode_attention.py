# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of paged attention for rows of few queries. See quire_kernels.paged_attention for the table, gpu/decode_plan.py for items.

decode_kernel, grid (I, Hkv, tiles of LANES): a program attends the keys of one item for its row's queries and the G heads that share a
kv head, packed into BLOCK_M lanes. A row of one split gets its result at once; else a float32 partial softmax is written:

    partial_acc    [I, Hkv, LANES, D]   lane: query * G + head of the group
    partial_sums   [I, Hkv, LANES, 2]   largest, total

reduce_kernel, grid (R, H): folds a row's partials in order, BLOCK_S at once.
"""

import triton
import triton.language as tl

from quire_kernels.gpu.attention_tile import attend_keys, fold_weights


# Tables are as wide as the longest row, one group behind the other: specialised, they would compile the kernel anew while serving.
@triton.jit(do_not_specialize=["table_stride_r"], do_not_specialize_on_alignment=["block_tables"])
def decode_kernel(
    q,
    k_cache,
    v_cache,
    kv_scales,
    out,
    partial_acc,
    partial_sums,
    block_tables,
    items,
    scale_log2,
    q_stride_t,
    cache_stride_n,
    table_stride_r,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
):
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM) if HEAD_DIM > 16 else 16
    item = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    num_queries = tl.load(items + item * 8 + 2)
    first_lane = tl.program_id(2) * BLOCK_M
    if first_lane < num_queries * GROUP:
        row = tl.load(items + item * 8).to(tl.int64)
        first_token = tl.load(items + item * 8 + 1)
        seq_len = tl.load(items + item * 8 + 3)
        begin = tl.load(items + item * 8 + 4)
        end = tl.load(items + item * 8 + 5)
        num_splits = tl.load(items + item * 8 + 6)

        lanes = first_lane + tl.arange(0, BLOCK_M)
        query = lanes // GROUP
        is_lane = query < num_queries
        dims = tl.arange(0, BLOCK_D)
        is_value = is_lane[:, None] & (dims < HEAD_DIM)[None, :]
        head = kv_head * GROUP + lanes % GROUP
        token = (first_token + query).to(tl.int64)
        q_at = q + token[:, None] * q_stride_t + head[:, None] * HEAD_DIM + dims[None, :]
        q_MD = tl.load(q_at, mask=is_value, other=0.0)
        if kv_scales is not None:
            scale_log2 *= tl.load(kv_scales + kv_head)

        k_head = k_cache + kv_head * BLOCK_SIZE * HEAD_DIM
        v_head = v_cache + kv_head * BLOCK_SIZE * HEAD_DIM
        first_position = seq_len - num_queries
        positions = tl.minimum(first_position + query, seq_len - 1)
        first_key = 0
        full_from = 0
        if WINDOW > 0:
            first_key = tl.maximum(first_position - WINDOW + 1, 0)
            full_from = tl.cdiv(tl.maximum(seq_len - WINDOW, 0), BLOCK_N) * BLOCK_N
            begin = tl.maximum(begin, first_key // BLOCK_N * BLOCK_N)
        full_to = (first_position + 1) // BLOCK_N * BLOCK_N
        acc, largest, total = attend_keys(
            q_MD, k_head, v_head, block_tables + row * table_stride_r, positions, begin, end, first_key,
            full_from, full_to, seq_len, cache_stride_n, scale_log2, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_N,
        )  # fmt: skip
        if kv_scales is not None:
            acc *= tl.load(kv_scales + tl.num_programs(1) + kv_head)

        if num_splits == 1:
            num_heads = tl.num_programs(1) * GROUP
            out_at = out + (token * num_heads + head)[:, None] * HEAD_DIM + dims[None, :]
            tl.store(out_at, (acc / total[:, None]).to(out.dtype.element_ty), mask=is_value)
        else:
            lane = (item * tl.num_programs(1) + kv_head) * LANES + lanes
            tl.store(partial_acc + lane[:, None] * HEAD_DIM + dims[None, :], acc, mask=is_value)
            tl.store(partial_sums + 2 * lane, largest, mask=is_lane)
            tl.store(partial_sums + 2 * lane + 1, total, mask=is_lane)


@triton.jit
def reduce_kernel(
    partial_acc,
    partial_sums,
    out,
    rows,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """BLOCK_S 1 folds one split after the other, as the prefill kernel's SPLIT_LEN does."""
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM) if HEAD_DIM > 16 else 16
    row = rows + 4 * tl.program_id(0)
    head = tl.program_id(1)
    num_splits = tl.load(row + 1)
    if num_splits > 1:
        first_item = tl.load(row).to(tl.int64)
        num_kv_heads = tl.num_programs(1) // GROUP
        dims = tl.arange(0, BLOCK_D)
        for query in range(tl.load(row + 3)):
            acc = tl.zeros((BLOCK_D,), tl.float32)
            largest = float("-inf")
            total = 0.0
            for first in range(0, num_splits, BLOCK_S):
                splits = first + tl.arange(0, BLOCK_S)
                is_split = splits < num_splits
                lane = ((first_item + splits) * num_kv_heads + head // GROUP) * LANES + query * GROUP + head % GROUP
                largests = tl.load(partial_sums + 2 * lane, mask=is_split, other=float("-inf"))
                totals = tl.load(partial_sums + 2 * lane + 1, mask=is_split, other=0.0)
                is_value = is_split[:, None] & (dims < HEAD_DIM)[None, :]
                values = tl.load(partial_acc + lane[:, None] * HEAD_DIM + dims[None, :], mask=is_value, other=0.0)
                new_largest, shrink, reference = fold_weights(largest, tl.max(largests))
                weights = tl.exp2(largests - reference)
                acc = tl.fma(acc, tl.zeros((BLOCK_D,), tl.float32) + shrink, tl.sum(values * weights[:, None], 0))
                total = tl.fma(total, shrink, tl.sum(totals * weights))
                largest = new_largest
            token = (tl.load(row + 2) + query).to(tl.int64)
            at = out + (token * tl.num_programs(1) + head) * HEAD_DIM + dims
            tl.store(at, (acc / total).to(out.dtype.element_ty), mask=dims < HEAD_DIM)
