"""Sampled tokens behind the rows' own."""

import pytest
import torch

from quire_kernels.ops import OpsName, load_ops


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("row_ids", [[2], [4, 0, 3], [-1, 1, -1, 4, -1], [-1]])
def test_each_row_grows_by_its_token_and_padding_changes_nothing(name: OpsName, row_ids: list[int]) -> None:
    token_ids = torch.arange(5 * 9, dtype=torch.int32).view(5, 9)
    num_tokens = torch.tensor([3, 0, 8, 1, 5])
    sampled = torch.arange(100, 100 + len(row_ids))
    expected, lengths = token_ids.clone(), num_tokens.clone()
    for row, token in zip(row_ids, sampled.tolist(), strict=True):
        if row >= 0:
            expected[row, lengths[row]] = token
            lengths[row] += 1

    load_ops(name).append_tokens(torch.tensor(row_ids), sampled, token_ids, num_tokens)

    assert torch.equal(token_ids, expected)
    assert torch.equal(num_tokens, lengths)


def test_more_tokens_than_one_program_takes() -> None:
    rows = torch.randperm(400, generator=torch.Generator().manual_seed(1))[:300]
    token_ids, num_tokens = torch.zeros(400, 3, dtype=torch.int32), torch.ones(400, dtype=torch.int64)

    load_ops("triton").append_tokens(rows, rows + 7, token_ids, num_tokens)

    assert torch.equal(token_ids[rows, 1].long(), rows + 7)
    assert int(num_tokens.sum()) == 400 + 300
    assert int((token_ids != 0).sum()) == 300
