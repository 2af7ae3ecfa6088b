"""Penalties over seen tokens, and the counts they read."""

import pytest
import torch

from quire_kernels.ops import OpsName, load_ops


def by_hand(logit: float, in_prompt: bool, count: int, penalties: tuple[float, float, float]) -> float:
    repetition, frequency, presence = penalties
    if in_prompt or count:
        logit = logit / repetition if logit > 0 else logit * repetition
    return logit - frequency * count - (presence if count else 0.0)


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("vocab_size", [5, 1100])
def test_every_logit_is_what_the_definition_gives_by_hand(name: OpsName, vocab_size: int) -> None:
    logits = torch.randn(4, vocab_size)
    slots = torch.tensor([2, -1, 0, 4])
    prompt_mask = torch.rand(5, vocab_size) < 0.3
    output_counts = torch.randint(0, 3, (5, vocab_size), dtype=torch.int32)
    repetition, frequency = torch.tensor([1.3, 2.0, 1.0, 0.7]), torch.tensor([0.5, 1.0, 0.0, -1.0])
    presence = torch.tensor([0.25, 1.0, 0.0, -0.5])
    expected = logits.clone()
    for row, slot in enumerate(slots.tolist()):
        penalties = (repetition[row].item(), frequency[row].item(), presence[row].item())
        for token in range(vocab_size if slot >= 0 else 0):
            seen = (bool(prompt_mask[slot, token]), int(output_counts[slot, token]))
            expected[row, token] = by_hand(logits[row, token].item(), *seen, penalties)

    load_ops(name).apply_penalties(logits, slots, prompt_mask, output_counts, repetition, frequency, presence)

    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_counts_grow_by_one_for_each_token_and_padding_is_skipped(name: OpsName) -> None:
    counts = torch.zeros(3, 10, dtype=torch.int32)
    slots, tokens = torch.tensor([0, 2, -1, 1, 0]), torch.tensor([3, 9, 4, -1, 3])

    load_ops(name).count_tokens(counts, slots, tokens)

    assert counts.nonzero().tolist() == [[0, 3], [2, 9]]
    assert (counts[0, 3], counts[2, 9]) == (2, 1)
