"""What the model is fed in a step, from the rows on the device: tokens, positions, slots, tables and lengths.

row_ids        [R] int64        the state's row of each scheduled row; -1 pads a captured graph
query_starts   [R + 1] int32    cumulative: row r gets tokens query_starts[r] .. query_starts[r + 1] - 1 of the step
state          RowState         S rows
  token_ids    [S, L] int32     prompt and output, sampled tokens included
  num_computed [S] int64        tokens computed before this step; grows by this step's, in place
  block_tables [G, S, M] int32  of each KV group
  block_size   int
num_tokens     int              T, at least query_starts[R]; what is beyond is padding
num_blocks     int              M', columns of the tables to come, at most M

returns        StepTensors
  token_ids    [T] int32        0 for padding
  positions    [T] int64        0 for padding
  slots        [G, T] int64     block * block_size + offset; -1 for padding
  block_tables [G, R, M'] int32 columns beyond the row's length are unspecified, and so is all of a padding row
  seq_lens     [R] int32        this step's tokens included; 0 for a padding row
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RowState:
    """See the module's table."""

    token_ids: Tensor
    num_computed: Tensor
    block_tables: Tensor
    block_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTensors:
    """See the module's table."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    seq_lens: Tensor


def prepare_inputs_reference(
    row_ids: Tensor, query_starts: Tensor, state: RowState, *, num_tokens: int, num_blocks: int
) -> StepTensors:
    """Row by row."""
    device, num_groups = row_ids.device, state.block_tables.shape[0]
    token_ids = torch.zeros(num_tokens, dtype=torch.int32, device=device)
    positions = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    slots = torch.full((num_groups, num_tokens), -1, dtype=torch.int64, device=device)
    seq_lens = torch.zeros(row_ids.shape[0], dtype=torch.int32, device=device)
    starts = query_starts.tolist()
    for i, row in enumerate(row_ids.tolist()):
        if row >= 0:
            mine = slice(starts[i], starts[i + 1])
            first = int(state.num_computed[row])
            at = torch.arange(first, first + starts[i + 1] - starts[i], device=device)
            token_ids[mine] = state.token_ids[row, at]
            positions[mine] = at
            blocks = state.block_tables[:, row, at // state.block_size].long()
            slots[:, mine] = blocks * state.block_size + at % state.block_size
            seq_lens[i] = state.num_computed[row] = first + len(at)
    return StepTensors(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        block_tables=state.block_tables[:, row_ids.clamp(min=0), :num_blocks],
        seq_lens=seq_lens,
    )
