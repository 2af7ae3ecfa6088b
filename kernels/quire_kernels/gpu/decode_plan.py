# mypy: disable-error-code="no-untyped-def"
"""Divides the keys of a step's decode rows into work items of about equal length, on the device, once a step.

    query_starts  [R + 1] int32   as in quire_kernels.paged_attention
    seq_lens      [R] int32
    items         [I, 8] int32    row, first query's token, queries, seq_len, first key, end of keys, splits of the row, 0
    rows          [R, 4] int32    first item, splits, first query's token, queries

Rows of 1 to MAX_QUERIES queries are decode rows; others get no item. Unused items have 0 queries. The host knows only I: it follows from
R, the width of the block tables and the device, so a captured graph serves every length, and its idle programs end at once.

Either the split length is the same for all rows, just long enough that all splits together fill the device (`num_wanted`), or, for
results that do not depend on the company (`split_len`), fixed, at fixed positions.

Grid (1,): R is at most a few thousand.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.launch_configs import warps_for

MAX_QUERIES = 8
"""A row of more queries is left to the prefill kernel. A few come from speculation."""
MOST_QUERIES = tl.constexpr(MAX_QUERIES)
MIN_SPLIT_LEN = 256
"""Keys that pay for writing and reading back a partial result: it is then about 3 % of the keys' and values' bytes."""
ALIGNMENT = 128
"""Splits begin at multiples of it, which every tile's length divides."""
PROGRAMS_PER_PROCESSOR = 4
"""Wanted programs of the decode kernel per multiprocessor: two run at once, and the second half evens out the end."""
ITEM_WORDS = 8
MIN_ROWS_HELD = 256
"""Lanes of the plan kernel, so that steps of fewer rows share one variant; idle lanes cost nothing that shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodePlan:
    """See the module's table. `split_len` 0: chosen on the device."""

    items: Tensor
    rows: Tensor
    split_len: int
    window: int


@triton.jit(do_not_specialize=["num_rows", "num_items", "num_wanted"])
def plan_decode_kernel(
    query_starts,
    seq_lens,
    items,
    rows,
    num_rows,
    num_items,
    num_wanted,
    SPLIT_LEN: tl.constexpr,
    MIN_LEN: tl.constexpr,
    ALIGN: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.arange(0, BLOCK)
    inside = row < num_rows
    token = tl.load(query_starts + row, mask=inside, other=0)
    num_queries = tl.load(query_starts + row + 1, mask=inside, other=0) - token
    seq_len = tl.load(seq_lens + row, mask=inside, other=0)
    is_decode = (num_queries > 0) & (num_queries <= MOST_QUERIES) & (seq_len > 0)
    num_queries = tl.where(is_decode, num_queries, 0)
    first = tl.zeros((BLOCK,), tl.int32)
    if WINDOW > 0:
        first = tl.maximum(seq_len - num_queries - WINDOW + 1, 0)
    if SPLIT_LEN > 0:
        split_len = SPLIT_LEN
        first = first // SPLIT_LEN * SPLIT_LEN
        length = tl.where(is_decode, seq_len - first, 0)
    else:
        first = first // ALIGN * ALIGN
        length = tl.where(is_decode, seq_len - first, 0)
        wanted = tl.cdiv(tl.sum(length.to(tl.int64)), num_wanted)
        split_len = tl.maximum(tl.cdiv(wanted, ALIGN) * ALIGN, MIN_LEN).to(tl.int32)
    num_splits = tl.cdiv(length, split_len)
    item_end = tl.cumsum(num_splits)
    first_item = item_end - num_splits

    tl.store(rows + 4 * row, first_item, mask=inside)
    tl.store(rows + 4 * row + 1, num_splits, mask=inside)
    tl.store(rows + 4 * row + 2, token, mask=inside)
    tl.store(rows + 4 * row + 3, num_queries, mask=inside)
    for split in range(tl.max(num_splits)):
        at = items + (first_item + split) * 8
        has_split = split < num_splits
        begin = first + split * split_len
        tl.store(at, row, mask=has_split)
        tl.store(at + 1, token, mask=has_split)
        tl.store(at + 2, num_queries, mask=has_split)
        tl.store(at + 3, seq_len, mask=has_split)
        tl.store(at + 4, begin, mask=has_split)
        tl.store(at + 5, tl.minimum(begin + split_len, seq_len), mask=has_split)
        tl.store(at + 6, num_splits, mask=has_split)
    for unused in range(tl.sum(num_splits), num_items, BLOCK):
        tl.store(items + (unused + row) * 8 + 2, 0, mask=unused + row < num_items)


def plan_decode(
    query_starts: Tensor, seq_lens: Tensor, *, num_kv_heads: int, max_keys: int, window: int, split_len: int
) -> DecodePlan:
    """The plan of one step; `max_keys`: at least the longest row, the same for every step of a captured graph."""
    num_rows, device = seq_lens.shape[0], seq_lens.device
    num_wanted = triton.cdiv(PROGRAMS_PER_PROCESSOR * num_processors(device), num_kv_heads)
    most_splits = triton.cdiv(max_keys, split_len or MIN_SPLIT_LEN) + 1
    num_items = num_rows * most_splits if split_len else min(num_rows * most_splits, num_rows + num_wanted)
    items = torch.empty((num_items, ITEM_WORDS), dtype=torch.int32, device=device)
    rows = torch.empty((num_rows, 4), dtype=torch.int32, device=device)
    block = max(MIN_ROWS_HELD, triton.next_power_of_2(num_rows))
    plan_decode_kernel[(1,)](
        query_starts,
        seq_lens,
        items,
        rows,
        num_rows,
        num_items,
        num_wanted,
        SPLIT_LEN=split_len,
        MIN_LEN=MIN_SPLIT_LEN,
        ALIGN=ALIGNMENT,
        WINDOW=window,
        BLOCK=block,
        num_warps=warps_for(block),
    )
    return DecodePlan(items=items, rows=rows, split_len=split_len, window=window)


@cache
def num_processors(device: torch.device) -> int:
    """Of the device; those of an H100 where the interpreter stands in for one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
