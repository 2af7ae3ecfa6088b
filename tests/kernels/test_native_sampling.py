"""Sampling in C++ against its references: every instruction set, odd vocabularies, ties, masks, extremes, company and threads."""

import math

import pytest
import torch
from torch import Tensor

from quire_kernels.cpu.native_library import NativeLibrary
from quire_kernels.cpu.native_sampling import MAX_TOP_LOGPROBS, NativeSampling
from quire_kernels.logprobs import top_logprobs_reference
from quire_kernels.penalties import apply_penalties_reference
from quire_kernels.sampling import SamplingTensors, argmax_reference, sample_reference
from quire_kernels.token_bias import apply_bitmask_reference

INFINITY = float("inf")


@pytest.fixture
def native(native_isa: NativeLibrary) -> NativeSampling:
    return NativeSampling(native_isa)


def params(rows: int, **given: float | Tensor) -> SamplingTensors:
    wanted = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seeds": torch.arange(rows), "positions": 0}
    wanted |= given
    dtypes = {"top_k": torch.int32, "seeds": torch.int64, "positions": torch.int64}
    return SamplingTensors(
        **{
            name: torch.as_tensor(value).to(dtypes.get(name, torch.float32)).expand(rows).contiguous()
            for name, value in wanted.items()
        }
    )


def random_case(seed: int, rows: int, vocab_size: int) -> tuple[Tensor, SamplingTensors]:
    """Every mixture of parameters; narrow, wide and extreme logits, many equal ones in every third case, bfloat16 in every fifth."""
    generator = torch.Generator().manual_seed(seed)

    def rand() -> Tensor:
        return torch.rand(rows, generator=generator)

    logits = torch.randn(rows, vocab_size, generator=generator) * (0.1, 1.0, 5.0, 300.0)[seed % 4]
    if seed % 3 == 1:
        logits = logits.round()
    if seed % 7 == 2:
        logits[torch.rand(logits.shape, generator=generator) < 0.7] = -INFINITY
        logits[:, vocab_size // 2] = 0.0
    if seed % 5 == 0:
        logits = logits.bfloat16()
    case = params(
        rows,
        temperature=rand() * 2 * (rand() > 0.2),
        top_k=(rand() * (vocab_size + 2)).floor() * (rand() > 0.5),
        top_p=torch.where(rand() > 0.5, rand(), 1.0),
        min_p=torch.where(rand() > 0.7, rand() * 0.3, 0.0),
        seeds=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        positions=torch.randint(0, 5000, (rows,), generator=generator),
    )
    return logits, case


@pytest.mark.parametrize("vocab_size", [1, 15, 16, 17, 33, 1000])
@pytest.mark.parametrize("seed", range(24))
def test_tokens_are_the_references(native: NativeSampling, seed: int, vocab_size: int) -> None:
    logits, case = random_case(seed, 6, vocab_size)

    tokens = native.sample(logits, case)

    assert torch.equal(tokens, sample_reference(logits, case))


@pytest.mark.parametrize("vocab_size", [16_000, 40_001, 151_936])
@pytest.mark.parametrize("seed", [1, 2, 5, 8])
def test_tokens_of_large_vocabularies_are_the_references(native: NativeSampling, seed: int, vocab_size: int) -> None:
    logits, case = random_case(seed, 3, vocab_size)

    tokens = native.sample(logits, case)

    assert torch.equal(tokens, sample_reference(logits, case))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_token(native_isa: NativeLibrary, num_threads: int) -> None:
    logits, case = random_case(3, 7, 40_001)
    native_isa.set_num_threads(num_threads)

    tokens = NativeSampling(native_isa).sample(logits, case)

    native_isa.set_num_threads(2)
    assert torch.equal(tokens, NativeSampling(native_isa).sample(logits, case))


def test_a_rows_token_does_not_depend_on_its_company(native: NativeSampling) -> None:
    logits, case = random_case(6, 9, 1000)

    together = native.sample(logits, case)

    for row in range(9):
        alone = SamplingTensors(**{name: value[row : row + 1] for name, value in vars(case).items()})
        assert native.sample(logits[row : row + 1], alone).item() == together[row]


def test_rows_may_be_strided_and_half_precision(native: NativeSampling) -> None:
    wide = torch.randn(4, 700).half()
    case = params(4, top_p=0.9)

    tokens = native.sample(wide[:, :500], case)

    assert torch.equal(tokens, sample_reference(wide[:, :500], case))


@pytest.mark.parametrize(
    ("cuts", "kept"),
    [
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.3}, {0, 1, 2}),
        ({"top_k": 5, "top_p": 0.5}, {0, 1, 2}),
        ({"min_p": 1.0}, set(range(8))),
        ({"top_p": 0.0}, {0}),
        ({"min_p": 1.5}, {0}),
        ({"top_k": 1}, {0}),
        ({"top_k": 8}, set(range(8))),
        ({"top_k": -1}, set(range(8))),
    ],
)
def test_of_equal_tokens_at_a_boundary_the_lowest_ids_stay(
    native: NativeSampling, cuts: dict[str, float], kept: set[int]
) -> None:
    rows = 200

    tokens = native.sample(torch.zeros(rows, 8), params(rows, **cuts))

    assert set(tokens.tolist()) == kept


def test_ties_at_a_boundary_are_counted_across_the_whole_row(native: NativeSampling) -> None:
    logits = torch.full((400, 100), -1.0)
    logits[:, 5::10] = 0.0  # ten tokens, a top_k of four

    tokens = native.sample(logits, params(400, top_k=4))

    assert set(tokens.tolist()) == {5, 15, 25, 35}


def test_temperature_zero_takes_the_lowest_of_the_largest(native: NativeSampling) -> None:
    logits = torch.randn(5, 16_001).mul(3).round()

    tokens = native.sample(logits, params(5, temperature=0.0))

    assert torch.equal(tokens, native.argmax(logits))
    assert torch.equal(tokens, argmax_reference(logits))


@pytest.mark.parametrize("vocab_size", [1, 16, 513, 40_000])
def test_the_largest_is_found_wherever_it_stands(native: NativeSampling, vocab_size: int) -> None:
    places = sorted({0, vocab_size // 2, vocab_size - 1})
    logits = torch.full((len(places), vocab_size), -INFINITY)
    for row, place in enumerate(places):
        logits[row, place] = -1e30

    assert native.argmax(logits).tolist() == places
    assert native.argmax(logits.bfloat16()).tolist() == places


def test_draws_follow_the_distribution(native: NativeSampling) -> None:
    draws = 40_000
    logits = torch.randn(23, generator=torch.Generator().manual_seed(5)) * 1.5
    expected = logits.softmax(-1) * draws

    case = params(draws, seeds=torch.full((draws,), 11), positions=torch.arange(draws))
    counts = torch.bincount(native.sample(logits.expand(draws, -1), case), minlength=23)

    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    # The 99.9 % point of 22 degrees, by Wilson and Hilferty; the draws are fixed, so this passes always or never.
    assert chi_square < 22 * (1 - 2 / 198 + 3.09 * math.sqrt(2 / 198)) ** 3


@pytest.mark.parametrize("cuts", [{"temperature": 0.0}, {}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.5}, {"min_p": 0.1}])
@pytest.mark.parametrize("value", [float("nan"), INFINITY, -INFINITY])
def test_rows_that_are_broken_are_named_and_give_some_token(
    native: NativeSampling, cuts: dict[str, float], value: float
) -> None:
    logits = torch.randn(4, 50)
    logits[1] = value
    logits[2, 7] = value
    broken = torch.zeros(4, dtype=torch.bool)

    tokens = native.sample(logits, params(4, **cuts), broken=broken)

    assert ((tokens >= 0) & (tokens < 50)).all()
    assert broken.tolist() == [False, True, value != -INFINITY, False]
    healthy = params(4, **cuts)
    assert tokens[[0, 3]].tolist() == native.sample(torch.nan_to_num(logits, 0.0), healthy)[[0, 3]].tolist()


def test_no_rows_give_no_tokens(native: NativeSampling) -> None:
    assert native.sample(torch.zeros(0, 9), params(0)).tolist() == []


@pytest.mark.parametrize("vocab_size", [5, 32, 1100])
def test_penalties_are_the_references_to_the_bit(native: NativeSampling, vocab_size: int) -> None:
    logits = torch.randn(3, vocab_size)
    tables = torch.rand(4, vocab_size) < 0.1, torch.randint(0, 3, (4, vocab_size), dtype=torch.int32)
    values = torch.tensor([1.3, 0.7, 1.0]), torch.tensor([0.5, 0.1, 0.0]), torch.tensor([0.25, 0.3, -0.5])
    slots = torch.tensor([3, -1, 0])
    expected = logits.clone()
    apply_penalties_reference(expected, slots, *tables, *values)

    native.apply_penalties(logits, slots, *tables, *values)

    assert torch.equal(logits, expected)


def test_counts_and_biases_skip_padding(native: NativeSampling) -> None:
    counts, logits = torch.zeros(3, 10, dtype=torch.int32), torch.zeros(2, 10)

    native.count_tokens(counts, torch.tensor([0, 2, -1, 1, 0]), torch.tensor([3, 9, 4, -1, 3]))
    native.apply_bias(logits, torch.tensor([1, -1]), torch.tensor([4, 5]), torch.tensor([-INFINITY, 1.0]))

    assert counts.nonzero().tolist() == [[0, 3], [2, 9]]
    assert counts[0, 3] == 2
    assert logits[1, 4] == -INFINITY
    assert logits.count_nonzero() == 1


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 50, 1100])
def test_bit_masks_are_the_references(native: NativeSampling, vocab_size: int) -> None:
    bitmask = torch.randint(-(2**31), 2**31 - 1, (3, -(-vocab_size // 32)), dtype=torch.int32)
    logits, rows = torch.randn(4, vocab_size), torch.tensor([3, -1, 1])
    expected = logits.clone()
    apply_bitmask_reference(expected, rows, bitmask)

    native.apply_bitmask(logits, rows, bitmask)

    assert torch.equal(logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab_size", "k"), [(5, 0), (70, 5), (16_001, 20), (7, 20), (200, MAX_TOP_LOGPROBS + 1)])
def test_logprobs_are_the_references(native: NativeSampling, dtype: torch.dtype, vocab_size: int, k: int) -> None:
    # Rounded to halves, so that many logits are equal.
    logits = (torch.randn(3, vocab_size) * 4).round().div(2).to(dtype)
    chosen = torch.randint(0, vocab_size, (3,))

    found = native.top_logprobs(logits, chosen, k)

    expected = top_logprobs_reference(logits, chosen, k)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.chosen_ranks, expected.chosen_ranks)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.chosen_logprobs, expected.chosen_logprobs, rtol=0, atol=2e-5)


def test_tokens_at_minus_infinity_fill_up_the_likeliest(native: NativeSampling) -> None:
    logits = torch.tensor([[-INFINITY, 1.0, -INFINITY, -INFINITY]])

    found = native.top_logprobs(logits, torch.tensor([1]), 3)

    assert found.ids.tolist() == [[1, 0, 2]]
    assert found.logprobs.tolist() == [[0.0, -INFINITY, -INFINITY]]
