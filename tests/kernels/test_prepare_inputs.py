"""Inputs of a step from the rows on the device: the reference by hand, the kernels against the reference."""

import pytest
import torch

from quire_kernels.ops import OpsName, load_ops
from quire_kernels.prepare_inputs import RowState


def state(num_rows: int, num_groups: int, block_size: int, num_blocks: int) -> RowState:
    generator = torch.Generator().manual_seed(num_rows)
    length = num_blocks * block_size
    tables = torch.randint(0, 10_000, (num_groups, num_rows, num_blocks + 3), generator=generator, dtype=torch.int32)
    return RowState(
        token_ids=torch.randint(0, 50_000, (num_rows, length + 5), generator=generator, dtype=torch.int32),
        num_computed=torch.randint(0, length // 2, (num_rows,), generator=generator),
        block_tables=tables,
        block_size=block_size,
    )


def copy_of(rows: RowState) -> RowState:
    return RowState(
        token_ids=rows.token_ids,
        num_computed=rows.num_computed.clone(),
        block_tables=rows.block_tables,
        block_size=rows.block_size,
    )


def starts_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_a_chunk_and_a_decoding_row_get_their_tokens_positions_slots_tables_and_lengths(name: OpsName) -> None:
    rows = RowState(
        token_ids=torch.arange(100, 140, dtype=torch.int32).view(2, 20),
        num_computed=torch.tensor([15, 3]),
        block_tables=torch.tensor([[[7, 8], [5, 6]], [[1, 2], [3, 4]]], dtype=torch.int32),
        block_size=16,
    )

    found = load_ops(name).prepare_inputs(torch.tensor([1, 0]), starts_of([2, 3]), rows, num_tokens=6, num_blocks=2)

    assert found.token_ids.tolist() == [123, 124, 115, 116, 117, 0]
    assert found.positions.tolist() == [3, 4, 15, 16, 17, 0]
    assert found.slots.tolist() == [
        [5 * 16 + 3, 5 * 16 + 4, 7 * 16 + 15, 8 * 16, 8 * 16 + 1, -1],
        [3 * 16 + 3, 3 * 16 + 4, 1 * 16 + 15, 2 * 16, 2 * 16 + 1, -1],
    ]
    assert found.block_tables.tolist() == [[[5, 6], [7, 8]], [[3, 4], [1, 2]]]
    assert found.seq_lens.tolist() == [5, 18]
    assert rows.num_computed.tolist() == [18, 5]


@pytest.mark.parametrize(
    ("counts", "row_ids"),
    [([1], [3]), ([1, 1, 1, 1], [4, 0, -1, -1]), ([200, 1, 17, 1], [2, 0, 4, 1]), ([3, 0, 5, 0, 0], [0, -1, 1, 2, -1])],
)
@pytest.mark.parametrize(("num_groups", "block_size"), [(1, 16), (3, 48)])
def test_the_kernels_give_what_the_reference_gives(
    counts: list[int], row_ids: list[int], num_groups: int, block_size: int
) -> None:
    rows = state(5, num_groups, block_size, 640 // block_size)
    expected_rows, found_rows = copy_of(rows), copy_of(rows)
    inputs = (torch.tensor(row_ids), starts_of(counts))
    sizes = {"num_tokens": sum(counts) + 2, "num_blocks": 600 // block_size}
    expected = load_ops("reference").prepare_inputs(*inputs, expected_rows, **sizes)

    found = load_ops("triton").prepare_inputs(*inputs, found_rows, **sizes)

    assert torch.equal(found.token_ids, expected.token_ids)
    assert torch.equal(found.positions, expected.positions)
    assert torch.equal(found.slots, expected.slots)
    assert torch.equal(found.seq_lens, expected.seq_lens)
    assert torch.equal(found_rows.num_computed, expected_rows.num_computed)
    used = inputs[0] >= 0
    assert torch.equal(found.block_tables[:, used], expected.block_tables[:, used])
