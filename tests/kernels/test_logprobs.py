"""Log probabilities, ranks and the likeliest tokens, ties included."""

import pytest
import torch

from quire_kernels.ops import OpsName, load_ops


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab_size", "k"), [(1, 5, 0), (3, 70, 5), (2, 5000, 3), (2, 7, 20)])
def test_results_are_those_of_a_plain_sort_in_python(
    name: OpsName, dtype: torch.dtype, rows: int, vocab_size: int, k: int
) -> None:
    # Rounded to halves, so that many logits are equal.
    logits = (torch.randn(rows, vocab_size) * 4).round().div(2).to(dtype)
    chosen = torch.randint(0, vocab_size, (rows,))

    found = load_ops(name).top_logprobs(logits, chosen, k)

    expected = logits.double().log_softmax(-1)
    for row in range(rows):
        values = logits[row].tolist()
        ranked = sorted(range(vocab_size), key=lambda token: (-values[token], token))[:k]
        assert found.ids[row].tolist() == ranked
        assert found.chosen_ranks[row] == 1 + sum(value > values[chosen[row]] for value in values)
        torch.testing.assert_close(found.logprobs[row].double(), expected[row, ranked], rtol=0, atol=2e-5)
        torch.testing.assert_close(found.chosen_logprobs[row].double(), expected[row, chosen[row]], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("vocab_size", "k"), [(100, 70), (1500, 3)])
def test_many_tokens_and_many_equal_ones_take_other_roads_to_the_same_result(vocab_size: int, k: int) -> None:
    logits = torch.zeros(2, vocab_size)
    logits[:, 60] = -1.0
    logits[1] *= -1

    found = load_ops("triton").top_logprobs(logits, torch.tensor([3, 4]), k)

    assert torch.equal(found.ids, logits.sort(dim=-1, descending=True, stable=True).indices[:, :k])
    torch.testing.assert_close(found.logprobs, logits.log_softmax(-1).gather(-1, found.ids), rtol=0, atol=2e-5)
