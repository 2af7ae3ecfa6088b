"""The runner's rows: each request's tokens, how far they are computed, and its block tables.

    row r    token_ids[r, :num_tokens[r]]      prompt and output, sampled tokens included as soon as they are sampled
             num_computed[r] <= num_tokens[r]  tokens whose KV is stored or launched

`HostRows` are in the host's memory, where everything can be read and written as numpy arrays too. `DeviceRows` are resident on the device,
which derives the inputs from them: what was sampled goes into the next step without the host seeing it. Their lengths live twice, on the
host too, where shapes are decided; that needs no synchronisation, because every sampled row gains exactly one token.
Must not know how tokens are chosen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire_kernels.prepare_inputs import RowState
from quire_worker.execution.staging import Array
from quire_worker.plan import StepPlan

SURPLUS_TOKENS = 8
"""A row that has reached its length may be sampled once more by each plan in flight; the token is dropped, but has a place."""

Ints = npt.NDArray[np.int64]


def upload(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """To the device without waiting for it."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class HostArrays:
    """The tensors of HostRows as numpy arrays of the same memory."""

    token_ids: npt.NDArray[np.int32]
    block_tables: tuple[npt.NDArray[np.int32], ...]


class Rows(Protocol):
    """What sampling knows of either."""

    @property
    def host_num_tokens(self) -> Ints: ...

    @property
    def num_tokens(self) -> Tensor: ...

    @property
    def token_ids(self) -> Tensor: ...

    def append(self, rows: Ints, rows_on_device: Tensor, sampled: Tensor) -> None:
        """One sampled token [S] int64 for each of the rows."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsShape:
    """R rows of at most `max_model_len` tokens; G KV groups."""

    num_rows: int
    max_model_len: int
    block_size: int
    num_groups: int

    @property
    def num_tokens(self) -> int:
        """Of the longest row."""
        return self.max_model_len + SURPLUS_TOKENS

    @property
    def num_blocks(self) -> int:
        """Of the longest row, in one group."""
        return -(-self.num_tokens // self.block_size)


class HostRows:
    """Rows of a CPU."""

    def __init__(self, shape: RowsShape) -> None:
        self.block_size = shape.block_size
        # By numpy, whose zero pages cost nothing until they are written: tables for the longest requests are mostly empty.
        tokens = np.zeros((shape.num_rows, shape.num_tokens), np.int32)
        tables = [np.zeros((shape.num_rows, shape.num_blocks), np.int32) for _ in range(shape.num_groups)]
        self.arrays = HostArrays(tokens, tuple(tables))
        self.host_num_computed: Ints = np.zeros(shape.num_rows, np.int64)
        self.host_num_tokens: Ints = np.zeros(shape.num_rows, np.int64)
        self.token_ids = torch.from_numpy(tokens)
        self.num_computed = torch.from_numpy(self.host_num_computed)
        self.num_tokens = torch.from_numpy(self.host_num_tokens)
        self._num_blocks: Ints = np.zeros((shape.num_groups, shape.num_rows), np.int64)

    def apply(self, plan: StepPlan) -> None:
        """The plan's new rows and table changes."""
        tables = self.arrays.block_tables
        for new in plan.new_rows:
            row, num_tokens = new.row, len(new.token_ids)
            self.host_num_computed[row] = new.num_computed
            self.host_num_tokens[row] = num_tokens
            self.arrays.token_ids[row, :num_tokens] = np.fromiter(new.token_ids, np.int32, num_tokens)
            for group, block_ids in enumerate(new.block_ids):
                self._num_blocks[group, row] = len(block_ids)
                tables[group][row, : len(block_ids)] = np.fromiter(block_ids, np.int32, len(block_ids))
        for row, group, index, block_id in _entries(plan, self._num_blocks):
            tables[group][row, index] = block_id

    def append(self, rows: Ints, rows_on_device: Tensor, sampled: Tensor) -> None:
        """See Rows."""
        places = self.host_num_tokens[rows]
        self.arrays.token_ids[rows, places] = sampled.numpy()
        self.host_num_tokens[rows] = places + 1


class DeviceRows:
    """Rows that the device derives inputs from."""

    def __init__(
        self, shape: RowsShape, device: torch.device, append_tokens: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    ) -> None:
        """append_tokens: that of the device's Ops."""
        self.device = device
        self.block_size = shape.block_size
        self._append_tokens = append_tokens
        self.host_num_computed: Ints = np.zeros(shape.num_rows, np.int64)
        self.host_num_tokens: Ints = np.zeros(shape.num_rows, np.int64)
        self._num_blocks: Ints = np.zeros((shape.num_groups, shape.num_rows), np.int64)
        self._counts = torch.zeros(2, shape.num_rows, dtype=torch.int64, device=device)
        self.num_tokens = self._counts[1]
        tables = (shape.num_groups, shape.num_rows, shape.num_blocks)
        self.state = RowState(
            token_ids=torch.zeros(shape.num_rows, shape.num_tokens, dtype=torch.int32, device=device),
            num_computed=self._counts[0],
            block_tables=torch.zeros(tables, dtype=torch.int32, device=device),
            block_size=shape.block_size,
        )

    @property
    def token_ids(self) -> Tensor:
        """[R, T] int32."""
        return self.state.token_ids

    def changes(self, plan: StepPlan) -> list[Array]:
        """The plan's new rows and table changes, to be sent to the device for `accept`; empty if it has none.

        Places in tables [m] int64 and the blocks [m] int32; of new rows also places in tokens [n] int64 and the tokens [n] int32, the
        rows [k] int64 and their counts [2, k] int64.
        """
        new_rows = plan.new_rows
        num_rows, width = self.state.block_tables.shape[1:]
        blocks: dict[int, int] = {}
        for new in new_rows:
            self.host_num_computed[new.row] = new.num_computed
            self.host_num_tokens[new.row] = len(new.token_ids)
            for group, block_ids in enumerate(new.block_ids):
                self._num_blocks[group, new.row] = len(block_ids)
                start = (group * num_rows + new.row) * width
                blocks |= zip(range(start, start + len(block_ids)), block_ids, strict=True)
        # Later changes of an entry win: the device writes all at once, so there may be one only.
        for row, group, index, block_id in _entries(plan, self._num_blocks):
            blocks[(group * num_rows + row) * width + index] = block_id
        changed: list[Array] = [
            np.fromiter(blocks.keys(), np.int64, len(blocks)),
            np.fromiter(blocks.values(), np.int32, len(blocks)),
        ]
        if not new_rows:
            return changed if blocks else []
        lengths = np.array([len(new.token_ids) for new in new_rows], np.int64)
        rows = np.array([new.row for new in new_rows], np.int64)
        starts = rows * self.state.token_ids.shape[1]
        token_places = np.arange(lengths.sum()) + np.repeat(starts - lengths.cumsum() + lengths, lengths)
        tokens = chain.from_iterable(new.token_ids for new in new_rows)
        return [
            *changed,
            token_places,
            np.fromiter(tokens, np.int32, len(token_places)),
            rows,
            np.stack((self.host_num_computed[rows], self.host_num_tokens[rows])),
        ]

    def accept(self, changes: Sequence[Tensor]) -> None:
        """What `changes` gave, on the device."""
        table_places, blocks, *of_new_rows = changes
        self.state.block_tables.view(-1).index_copy_(0, table_places, blocks)
        if of_new_rows:
            token_places, tokens, rows, counts = of_new_rows
            self.state.token_ids.view(-1).index_copy_(0, token_places, tokens)
            self._counts.index_copy_(1, rows, counts)

    def append(self, rows: Ints, rows_on_device: Tensor, sampled: Tensor) -> None:
        """See Rows."""
        self.append_on_device(rows_on_device, sampled)
        self.host_num_tokens[rows] += 1

    def append_on_device(self, row_ids: Tensor, sampled: Tensor) -> None:
        """What `append` does there; rows of -1 are padding."""
        self._append_tokens(row_ids, sampled, self.state.token_ids, self.num_tokens)


def _entries(plan: StepPlan, num_blocks: Ints) -> Iterator[tuple[int, int, int, int]]:
    """(row, group, index, block id) of every changed entry of the tables, in order; appended ones are counted in num_blocks [G, R]."""
    for row, group, block_ids in plan.new_blocks:
        start = int(num_blocks[group, row])
        num_blocks[group, row] = start + len(block_ids)
        for i, block_id in enumerate(block_ids):
            yield row, group, start + i, block_id
    yield from plan.replaced_block_ids
