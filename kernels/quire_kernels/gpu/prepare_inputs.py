# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of prepare_inputs. See quire_kernels.prepare_inputs for the table.

tokens_kernel, grid (tiles of T,): each lane finds its token's row by bisection and writes what the token needs.
rows_kernel, grid (R, G): gathers a row's table; the first group's program also writes its length and counts the tokens as computed, which
the tokens' kernel has read by then.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.prepare_inputs import RowState, StepTensors

TOKENS_PER_PROGRAM = 128
BLOCKS_PER_PASS = 1024


@triton.jit(do_not_specialize=["num_rows", "num_tokens"])
def tokens_kernel(
    row_ids,
    query_starts,
    row_tokens,
    num_computed,
    block_tables,
    token_ids,
    positions,
    slots,
    num_rows,
    num_tokens,
    tokens_stride_s,
    tables_stride_g,
    tables_stride_s,
    NUM_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    # The last i with query_starts[i] <= token; rows without tokens come before the one that has it.
    low = tl.zeros((BLOCK,), tl.int32)
    step = 1
    while step < num_rows:
        step *= 2
    while step > 0:
        middle = low + step
        begins_before = tl.load(query_starts + middle, mask=middle <= num_rows, other=2147483647) <= token
        low = tl.where(begins_before, middle, low)
        step //= 2
    is_token = inside & (low < num_rows)
    row = tl.load(row_ids + low, mask=is_token, other=-1)
    is_token = is_token & (row >= 0)
    offset = token - tl.load(query_starts + low, mask=is_token, other=0)
    position = tl.load(num_computed + row, mask=is_token, other=0) + offset
    position = tl.where(is_token, position, 0)
    token_id = tl.load(row_tokens + row * tokens_stride_s + position, mask=is_token, other=0)
    tl.store(token_ids + token, token_id, mask=inside)
    tl.store(positions + token, position, mask=inside)
    for group in tl.static_range(NUM_GROUPS):
        table = block_tables + group * tables_stride_g + row * tables_stride_s
        block = tl.load(table + position // BLOCK_SIZE, mask=is_token, other=0).to(tl.int64)
        slot = tl.where(is_token, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
        tl.store(slots + group * num_tokens.to(tl.int64) + token, slot, mask=inside)


@triton.jit(do_not_specialize=["num_blocks"])
def rows_kernel(
    row_ids,
    query_starts,
    num_computed,
    block_tables,
    out_tables,
    seq_lens,
    num_blocks,
    tables_stride_g,
    tables_stride_s,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    row = tl.load(row_ids + i)
    if row < 0:
        if group == 0:
            tl.store(seq_lens + i, 0)
    else:
        table = block_tables + group * tables_stride_g + row * tables_stride_s
        out = out_tables + (group * tl.num_programs(0) + i) * num_blocks
        for first in range(0, num_blocks, BLOCK):
            at = first + tl.arange(0, BLOCK)
            tl.store(out + at, tl.load(table + at, mask=at < num_blocks, other=0), mask=at < num_blocks)
        if group == 0:
            num_queries = tl.load(query_starts + i + 1) - tl.load(query_starts + i)
            seq_len = tl.load(num_computed + row) + num_queries
            tl.store(num_computed + row, seq_len)
            tl.store(seq_lens + i, seq_len.to(tl.int32))


def prepare_inputs_triton(
    row_ids: Tensor, query_starts: Tensor, state: RowState, *, num_tokens: int, num_blocks: int
) -> StepTensors:
    """See quire_kernels.prepare_inputs."""
    tables, device = state.block_tables, row_ids.device
    num_groups, num_rows = tables.shape[0], row_ids.shape[0]
    assert tables.stride(2) == 1 and state.token_ids.stride(1) == 1 and num_rows > 0
    found = StepTensors(
        token_ids=torch.empty(num_tokens, dtype=torch.int32, device=device),
        positions=torch.empty(num_tokens, dtype=torch.int64, device=device),
        slots=torch.empty((num_groups, num_tokens), dtype=torch.int64, device=device),
        block_tables=torch.empty((num_groups, num_rows, num_blocks), dtype=torch.int32, device=device),
        seq_lens=torch.empty(num_rows, dtype=torch.int32, device=device),
    )
    tokens_kernel[(triton.cdiv(num_tokens, TOKENS_PER_PROGRAM),)](
        row_ids,
        query_starts,
        state.token_ids,
        state.num_computed,
        tables,
        found.token_ids,
        found.positions,
        found.slots,
        num_rows,
        num_tokens,
        state.token_ids.stride(0),
        tables.stride(0),
        tables.stride(1),
        NUM_GROUPS=num_groups,
        BLOCK_SIZE=state.block_size,
        BLOCK=TOKENS_PER_PROGRAM,
    )
    rows_kernel[(num_rows, num_groups)](
        row_ids,
        query_starts,
        state.num_computed,
        tables,
        found.block_tables,
        found.seq_lens,
        num_blocks,
        tables.stride(0),
        tables.stride(1),
        BLOCK=BLOCKS_PER_PASS,
    )
    return found
