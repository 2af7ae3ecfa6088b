"""Derives what the model is fed from the rows: which tokens, at which positions, with which slots and tables.

Vectorised over tokens and rows, and on the device wherever a value depends on what was sampled. R rows are scheduled, T tokens in all,
S of the rows are sampled: those whose tokens are all computed after this step.
"""

import numpy as np
import torch
from torch import Tensor

from quire_worker.execution.host_inputs import prepare_step_on_host
from quire_worker.execution.prepared_step import PreparedStep, SampledRows
from quire_worker.execution.rows import Ints, Rows, upload
from quire_worker.models.step_inputs import AttentionInputs, StepInputs


def prepare_step(rows: Rows, scheduled: list[int], num_tokens: list[int]) -> PreparedStep:
    """The inputs of `num_tokens[i]` tokens of each row `scheduled[i]`; counts them as computed."""
    if rows.arrays is not None:
        return prepare_step_on_host(rows, rows.arrays, scheduled, num_tokens)
    row_ids = np.array(scheduled, np.int64)
    counts = np.array(num_tokens, np.int64)
    seq_lens = rows.host_num_computed[row_ids] + counts
    is_sampled = seq_lens == rows.host_num_tokens[row_ids]
    is_decode = bool(is_sampled.all()) and len(counts) == int(counts.sum())
    rows_on_device, counts_on_device = upload(row_ids, rows.device), upload(counts, rows.device)
    start = rows.num_computed.index_select(0, rows_on_device)
    token_rows, positions = (rows_on_device, start) if is_decode else _spread(rows_on_device, start, counts)
    attention = AttentionInputs(
        block_tables=_tables(rows, rows_on_device, int(seq_lens.max())),
        query_starts=upload(np.concatenate((np.zeros(1, np.int32), counts.cumsum(dtype=np.int32))), rows.device),
        seq_lens=(start + counts_on_device).to(torch.int32),
        max_query_len=int(counts.max()),
        max_seq_len=int(seq_lens.max()),
    )
    sampled = row_ids[is_sampled]
    picked = None if is_decode else upload(np.flatnonzero(is_sampled), rows.device)
    inputs = StepInputs(
        token_ids=rows.token_ids[token_rows, positions],
        positions=positions,
        slots=tuple(_slots(table, token_rows, positions, rows.block_size) for table in rows.block_tables),
        attention=attention,
        sampled_tokens=None if picked is None else upload(counts.cumsum()[is_sampled] - 1, rows.device),
        sampled_attention=attention if picked is None else _last_queries(attention, picked, seq_lens[is_sampled]),
        num_sampled=len(sampled),
    )
    rows.advance(row_ids, rows_on_device, counts, counts_on_device)
    sampled_on_device = rows_on_device if picked is None else rows_on_device.index_select(0, picked)
    return PreparedStep(inputs=inputs, sampled=SampledRows(rows=sampled, rows_on_device=sampled_on_device))


def _spread(rows_on_device: Tensor, start: Tensor, counts: Ints) -> tuple[Tensor, Tensor]:
    """Row and position of each token, both [T]; `start` [R] is the position of each row's first."""
    row_index = np.repeat(np.arange(len(counts)), counts)
    offsets = np.arange(len(row_index)) - np.repeat(counts.cumsum() - counts, counts)
    index = upload(row_index, rows_on_device.device)
    positions = start.index_select(0, index) + upload(offsets, rows_on_device.device)
    return rows_on_device.index_select(0, index), positions


def _tables(rows: Rows, rows_on_device: Tensor, max_seq_len: int) -> tuple[Tensor, ...]:
    num_blocks = -(-max_seq_len // rows.block_size)
    return tuple(table[:, :num_blocks].index_select(0, rows_on_device) for table in rows.block_tables)


def _slots(table: Tensor, token_rows: Tensor, positions: Tensor, block_size: int) -> Tensor:
    index = torch.div(positions, block_size, rounding_mode="floor")
    return table[token_rows, index].to(torch.int64) * block_size + (positions - index * block_size)


def _last_queries(attention: AttentionInputs, picked: Tensor, seq_lens: Ints) -> AttentionInputs:
    """One query, the last, of each picked row."""
    num_picked = picked.shape[0]
    return AttentionInputs(
        block_tables=tuple(table.index_select(0, picked) for table in attention.block_tables),
        query_starts=torch.arange(num_picked + 1, dtype=torch.int32, device=picked.device),
        seq_lens=attention.seq_lens.index_select(0, picked),
        max_query_len=1,
        max_seq_len=int(seq_lens.max(initial=0)),
    )
