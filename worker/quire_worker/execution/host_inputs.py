"""What the model is fed, derived on a CPU: by numpy, on the memory that the tensors are views of.

R rows are scheduled, T tokens in all, S of the rows are sampled: those whose tokens are all computed after this step.

A torch operation costs microseconds before it computes anything, and a step of decoding derives some twenty small arrays.
"""

import numpy as np
import numpy.typing as npt
import torch

from quire_worker.execution.prepared_step import PreparedStep, SampledRows
from quire_worker.execution.prompt_scores import PromptScorer, WantedQueries
from quire_worker.execution.rows import HostArrays, HostRows, Ints
from quire_worker.models.step_inputs import AttentionInputs, StepInputs

_tensor = torch.from_numpy


def prepare_step_on_host(
    rows: HostRows, scheduled: list[int], num_tokens: list[int], scorer: PromptScorer | None = None
) -> PreparedStep:
    """The inputs of `num_tokens[i]` tokens of each row `scheduled[i]`; counts them as computed."""
    arrays = rows.arrays
    row_ids = np.fromiter(scheduled, np.int64, len(scheduled))
    start = rows.host_num_computed[row_ids]
    if sum(num_tokens) == len(num_tokens) and (start + 1 == rows.host_num_tokens[row_ids]).all():
        return _decode_step(rows, arrays, row_ids, start)
    return _mixed_step(rows, arrays, row_ids, start, np.fromiter(num_tokens, np.int64, len(num_tokens)), scorer)


def _decode_step(rows: HostRows, arrays: HostArrays, row_ids: Ints, start: Ints) -> PreparedStep:
    """One token in every row, each of which is sampled."""
    num_rows = len(row_ids)
    max_seq_len = int(start.max()) + 1
    attention = AttentionInputs(
        block_tables=_tables(rows, arrays, row_ids, max_seq_len),
        query_starts=_tensor(np.arange(num_rows + 1, dtype=np.int32)),
        seq_lens=_tensor((start + 1).astype(np.int32)),
        max_query_len=1,
        max_seq_len=max_seq_len,
    )
    inputs = StepInputs(
        token_ids=_tensor(arrays.token_ids[row_ids, start]),
        positions=_tensor(start),
        slots=_slots(rows, arrays, row_ids, start),
        attention=attention,
        sampled_tokens=None,
        sampled_attention=attention,
        num_sampled=num_rows,
    )
    rows.host_num_computed[row_ids] = start + 1
    return PreparedStep(inputs=inputs, sampled=SampledRows(rows=row_ids, rows_on_device=_tensor(row_ids)))


def _mixed_step(
    rows: HostRows, arrays: HostArrays, row_ids: Ints, start: Ints, counts: Ints, scorer: PromptScorer | None
) -> PreparedStep:
    """Any number of tokens in each row."""
    ends = counts.cumsum()
    seq_lens = start + counts
    token_rows = np.repeat(row_ids, counts)
    positions = np.arange(int(ends[-1])) + np.repeat(start - ends + counts, counts)
    is_sampled = seq_lens == rows.host_num_tokens[row_ids]
    picked = np.flatnonzero(is_sampled)
    sampled = row_ids[picked]
    queries = None if scorer is None else scorer.wanted(row_ids, start, counts, is_sampled)
    max_seq_len = int(seq_lens.max())
    inputs = StepInputs(
        token_ids=_tensor(arrays.token_ids[token_rows, positions]),
        positions=_tensor(positions),
        slots=_slots(rows, arrays, token_rows, positions),
        attention=AttentionInputs(
            block_tables=_tables(rows, arrays, row_ids, max_seq_len),
            query_starts=_tensor(np.concatenate((np.zeros(1, np.int32), ends.astype(np.int32)))),
            seq_lens=_tensor(seq_lens.astype(np.int32)),
            max_query_len=int(counts.max()),
            max_seq_len=max_seq_len,
        ),
        sampled_tokens=_tensor(ends[picked] - 1 if queries is None else queries.tokens),
        sampled_attention=_last_queries(rows, arrays, sampled, seq_lens[picked])
        if queries is None
        else _wanted_queries(rows, arrays, row_ids, seq_lens, queries),
        num_sampled=len(sampled) if queries is None else len(queries.tokens),
    )
    rows.host_num_computed[row_ids] = seq_lens
    return PreparedStep(
        inputs=inputs, sampled=SampledRows(rows=sampled, rows_on_device=_tensor(sampled)), queries=queries
    )


def _wanted_queries(
    rows: HostRows, arrays: HostArrays, row_ids: Ints, seq_lens: Ints, queries: WantedQueries
) -> AttentionInputs:
    """All queries of rows whose prompts are scored, the last one of other sampled rows."""
    lens = seq_lens[queries.picked]
    max_seq_len = int(lens.max())
    return AttentionInputs(
        block_tables=_tables(rows, arrays, row_ids[queries.picked], max_seq_len),
        query_starts=_tensor(queries.starts),
        seq_lens=_tensor(lens.astype(np.int32)),
        max_query_len=int(np.diff(queries.starts).max()),
        max_seq_len=max_seq_len,
    )


def _last_queries(rows: HostRows, arrays: HostArrays, sampled: Ints, seq_lens: Ints) -> AttentionInputs:
    """One query, the last, of each sampled row."""
    max_seq_len = int(seq_lens.max(initial=0))
    return AttentionInputs(
        block_tables=_tables(rows, arrays, sampled, max_seq_len),
        query_starts=_tensor(np.arange(len(sampled) + 1, dtype=np.int32)),
        seq_lens=_tensor(seq_lens.astype(np.int32)),
        max_query_len=1,
        max_seq_len=max_seq_len,
    )


def _tables(rows: HostRows, arrays: HostArrays, row_ids: Ints, max_seq_len: int) -> tuple[torch.Tensor, ...]:
    num_blocks = -(-max_seq_len // rows.block_size)
    return tuple(_tensor(table[row_ids, :num_blocks]) for table in arrays.block_tables)


def _slots(rows: HostRows, arrays: HostArrays, token_rows: Ints, positions: Ints) -> tuple[torch.Tensor, ...]:
    index, offset = np.divmod(positions, rows.block_size)
    return tuple(_tensor(_slots_of(table, token_rows, index, offset, rows.block_size)) for table in arrays.block_tables)


def _slots_of(table: npt.NDArray[np.int32], token_rows: Ints, index: Ints, offset: Ints, block_size: int) -> Ints:
    return table[token_rows, index] * np.int64(block_size) + offset
