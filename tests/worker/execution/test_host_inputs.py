"""A CPU's inputs, derived by numpy, are what each token's place in its row says."""

import random

import pytest
import torch

from quire_worker.execution.host_inputs import prepare_step_on_host
from quire_worker.execution.rows import HostRows, RowsShape

BLOCK_SIZE = 4


def filled_rows(plans, *, num_groups: int, lengths: dict[int, tuple[int, int]]) -> HostRows:
    """Rows of (tokens known, tokens computed); tokens and blocks are drawn."""
    rng = random.Random(3)
    rows = HostRows(RowsShape(num_rows=8, max_model_len=40, block_size=BLOCK_SIZE, num_groups=num_groups))
    new = []
    for row, (num_tokens, num_computed) in lengths.items():
        made = plans.new(row, [rng.randrange(99) for _ in range(num_tokens)], [], num_computed=num_computed)
        tables = [[rng.randrange(1, 500) for _ in range(-(-num_tokens // BLOCK_SIZE))] for _ in range(num_groups)]
        new.append(type(made)(**{name: getattr(made, name) for name in made.__struct_fields__} | {"block_ids": tables}))
    rows.apply(plans.step(list(lengths), [1] * len(lengths), new=new))
    return rows


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize(
    "scheduled",
    [
        {5: (9, 8, 1), 0: (1, 0, 1), 2: (17, 16, 1)},  # decoding
        {5: (9, 0, 9), 0: (7, 6, 1), 2: (17, 4, 5)},  # a whole prompt, a decoding row, a chunk
        {1: (12, 0, 1), 6: (12, 3, 4)},  # nothing is sampled
    ],
)
def test_every_token_has_its_id_position_slot_and_table(plans, num_groups, scheduled):
    rows = filled_rows(plans, num_groups=num_groups, lengths={row: known[:2] for row, known in scheduled.items()})
    counts = [count for _, _, count in scheduled.values()]
    at = [(row, start + i) for row, (_, start, count) in scheduled.items() for i in range(count)]
    ends = {row: start + count for row, (_, start, count) in scheduled.items()}
    num_blocks = -(-max(ends.values()) // BLOCK_SIZE)
    sampled = [row for row, (known, _, _) in scheduled.items() if ends[row] == known]

    step = prepare_step_on_host(rows, list(scheduled), counts)

    inputs = step.inputs
    assert inputs.token_ids.tolist() == [rows.token_ids[row, position] for row, position in at]
    assert inputs.positions.tolist() == [position for _, position in at]
    for slots, table, found in zip(inputs.slots, rows.arrays.block_tables, inputs.attention.block_tables, strict=True):
        places = [(table[row, p // BLOCK_SIZE].item(), p % BLOCK_SIZE) for row, p in at]
        assert slots.tolist() == [block * BLOCK_SIZE + offset for block, offset in places]
        assert found.tolist() == [table[row, :num_blocks].tolist() for row in scheduled]
    assert inputs.attention.query_starts.tolist() == [sum(counts[:i]) for i in range(len(counts) + 1)]
    assert inputs.attention.seq_lens.tolist() == list(ends.values())
    assert (inputs.attention.max_query_len, inputs.attention.max_seq_len) == (max(counts), max(ends.values()))
    assert step.sampled.rows.tolist() == step.sampled.rows_on_device.tolist() == sampled
    assert inputs.sampled_attention.seq_lens.tolist() == [ends[row] for row in sampled]
    last = list(range(len(at))) if inputs.sampled_tokens is None else inputs.sampled_tokens.tolist()
    assert [at[i] for i in last] == [(row, ends[row] - 1) for row in sampled]
    assert rows.num_computed[list(scheduled)].tolist() == list(ends.values())


def test_a_sampled_token_is_the_next_steps_input(plans):
    rows = filled_rows(plans, num_groups=1, lengths={3: (5, 4), 1: (2, 1)})
    step = prepare_step_on_host(rows, [3, 1], [1, 1])

    rows.append(step.sampled.rows, step.sampled.rows_on_device, torch.tensor([70, 71]))

    following = prepare_step_on_host(rows, [1, 3], [1, 1]).inputs
    assert following.token_ids.tolist() == [71, 70]
    assert following.positions.tolist() == [2, 5]
    assert rows.num_tokens[[3, 1]].tolist() == [6, 3]
