"""Biases on single logits, and bit masks over the vocabulary."""

import pytest
import torch

from quire_kernels.ops import OpsName, load_ops


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_values_are_added_where_they_belong_and_padding_and_unknown_ids_are_skipped(name: OpsName) -> None:
    logits = torch.zeros(3, 50)

    load_ops(name).apply_bias(
        logits,
        torch.tensor([0, 2, -1, 2, 1, 0]),
        torch.tensor([7, 49, 0, 1, 50, -3]),
        torch.tensor([1.5, float("-inf"), 9.0, -2.0, 4.0, 4.0]),
    )

    assert {tuple(at): logits[tuple(at)].item() for at in logits.nonzero().tolist()} == {
        (0, 7): 1.5,
        (2, 49): float("-inf"),
        (2, 1): -2.0,
    }


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("vocab_size", [5, 64, 1100])
def test_a_bit_mask_leaves_exactly_the_allowed_tokens(name: OpsName, vocab_size: int) -> None:
    allowed = torch.rand(3, vocab_size) < 0.4
    words = torch.zeros(3, (vocab_size + 31) // 32, dtype=torch.int64)
    for row, token in allowed.nonzero().tolist():
        words[row, token // 32] |= 1 << token % 32
    bitmask = torch.where(words >= 2**31, words - 2**32, words).int()
    logits = torch.randn(4, vocab_size)
    expected = logits.clone()
    expected[3] = expected[3].masked_fill(~allowed[0], float("-inf"))
    expected[1] = expected[1].masked_fill(~allowed[2], float("-inf"))

    load_ops(name).apply_bitmask(logits, torch.tensor([3, -1, 1]), bitmask)

    assert torch.equal(logits, expected)
