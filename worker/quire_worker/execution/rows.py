"""The runner's rows: each request's tokens, how far they are computed, and its block tables, resident on the device.

    row r    token_ids[r, :num_tokens[r]]      prompt and output, sampled tokens included as soon as they are sampled
             num_computed[r] <= num_tokens[r]  tokens whose KV is stored or launched

Lengths live twice: on the device, where inputs are derived, and on the host, where shapes are decided. The host's copy needs no
synchronisation, because every sampled row gains exactly one token; what that token is, only the device knows. On a CPU both are the
same memory, and everything can be read and written as numpy arrays too.
Must not know how tokens are chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire_worker.plan import NewRow, StepPlan

SURPLUS_TOKENS = 8
"""A row that has reached its length may be sampled once more by each plan in flight; the token is dropped, but has a place."""

Ints = npt.NDArray[np.int64]


def upload(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """To the device without waiting for it."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike, device: torch.device) -> Tensor:
    """On a CPU pages that cost nothing until they are written: tables for the longest requests are mostly empty."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, dtype))
    return torch.from_numpy(np.zeros(1, dtype)).to(device).repeat(*shape)


@dataclass(frozen=True, slots=True)
class HostArrays:
    """The tensors of Rows as numpy arrays of the same memory."""

    token_ids: npt.NDArray[np.int32]
    block_tables: tuple[npt.NDArray[np.int32], ...]


def _counts_on(device: torch.device, on_host: Ints) -> Tensor:
    """On a CPU the very same numbers."""
    return torch.from_numpy(on_host) if device.type == "cpu" else zeros(on_host.shape, np.int64, device)


class Rows:
    """R rows of at most `max_model_len` tokens; G KV groups."""

    def __init__(
        self, num_rows: int, max_model_len: int, block_size: int, num_groups: int, device: torch.device
    ) -> None:
        width = max_model_len + SURPLUS_TOKENS
        num_blocks = -(-width // block_size)
        self.device = device
        self.block_size = block_size
        self.token_ids = zeros((num_rows, width), np.int32, device)
        self.host_num_computed: Ints = np.zeros(num_rows, np.int64)
        self.host_num_tokens: Ints = np.zeros(num_rows, np.int64)
        self.num_computed = _counts_on(device, self.host_num_computed)
        self.num_tokens = _counts_on(device, self.host_num_tokens)
        self.block_tables = [zeros((num_rows, num_blocks), np.int32, device) for _ in range(num_groups)]
        self._num_blocks: Ints = np.zeros((num_groups, num_rows), np.int64)
        self.arrays = (
            HostArrays(self.token_ids.numpy(), tuple(table.numpy() for table in self.block_tables))
            if device.type == "cpu"
            else None
        )
        """None where the rows are not in the host's memory."""

    def apply(self, plan: StepPlan) -> None:
        """The plan's new rows and table changes."""
        for new in plan.new_rows:
            self._set_up(new)
        entries: list[list[tuple[int, int, int]]] = [[] for _ in self.block_tables]
        for row, group, block_ids in plan.new_blocks:
            start = int(self._num_blocks[group, row])
            entries[group] += [(row, start + i, block_id) for i, block_id in enumerate(block_ids)]
            self._num_blocks[group, row] = start + len(block_ids)
        for row, group, index, block_id in plan.replaced_block_ids:
            entries[group].append((row, index, block_id))
        for group, changes in enumerate(entries):
            if changes:
                self._write(group, changes)

    def _set_up(self, new: NewRow) -> None:
        row, num_tokens = new.row, len(new.token_ids)
        tokens = np.fromiter(new.token_ids, np.int32, num_tokens)
        tables = [np.fromiter(block_ids, np.int32, len(block_ids)) for block_ids in new.block_ids]
        self.host_num_computed[row] = new.num_computed
        self.host_num_tokens[row] = num_tokens
        self._num_blocks[:, row] = [len(blocks) for blocks in tables]
        if self.arrays is not None:
            self.arrays.token_ids[row, :num_tokens] = tokens
            for table, blocks in zip(self.arrays.block_tables, tables, strict=True):
                table[row, : len(blocks)] = blocks
            return
        self.token_ids[row, :num_tokens] = upload(tokens, self.device)
        self.num_computed[row] = new.num_computed
        self.num_tokens[row] = num_tokens
        for on_device, blocks in zip(self.block_tables, tables, strict=True):
            on_device[row, : len(blocks)] = upload(blocks, self.device)

    def _write(self, group: int, changes: Sequence[tuple[int, int, int]]) -> None:
        if self.arrays is not None:
            table = self.arrays.block_tables[group]
            for row, index, block_id in changes:
                table[row, index] = block_id
            return
        # Later changes of an entry win, and index_put_ does not say which of two does.
        last = {(row, index): block_id for row, index, block_id in changes}
        places = upload(np.array(list(last), np.int64).T.copy(), self.device)
        block_ids = upload(np.fromiter(last.values(), np.int32, len(last)), self.device)
        self.block_tables[group].index_put_((places[0], places[1]), block_ids)

    def advance(self, rows: Ints, rows_on_device: Tensor, num_tokens: Ints, num_tokens_on_device: Tensor) -> None:
        """These tokens are computed, or will be before anything launched later. Not for a CPU, whose inputs do it themselves."""
        self.host_num_computed[rows] += num_tokens
        self.num_computed.index_add_(0, rows_on_device, num_tokens_on_device)

    def append(self, rows: Ints, rows_on_device: Tensor, sampled: Tensor) -> None:
        """One sampled token [S] int64 for each of the rows."""
        if self.arrays is not None:
            places_on_host = self.host_num_tokens[rows]
            self.arrays.token_ids[rows, places_on_host] = sampled.numpy()
            self.host_num_tokens[rows] = places_on_host + 1
            return
        places = self.num_tokens.index_select(0, rows_on_device)
        self.token_ids.index_put_((rows_on_device, places), sampled.to(torch.int32))
        self.num_tokens.index_put_((rows_on_device,), places + 1)
        self.host_num_tokens[rows] += 1
