"""Sampling: the reference against brute force and chi-square, and both fast paths against the reference."""

import math

import pytest
import torch
from torch import Tensor

from quire_kernels.gpu.sampling import sample_triton
from quire_kernels.ops import OpsName, load_ops
from quire_kernels.sampling import SamplingTensors, perturbed_logits

NAMES: list[OpsName] = ["reference", "cpu", "triton"]


def params(
    rows: int,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
) -> SamplingTensors:
    return SamplingTensors(
        temperature=torch.zeros(rows) + temperature,
        top_k=(torch.zeros(rows) + top_k).int(),
        top_p=torch.zeros(rows) + top_p,
        min_p=torch.zeros(rows) + min_p,
        seeds=torch.arange(rows) if seeds is None else seeds,
        positions=torch.zeros(rows, dtype=torch.int64) if positions is None else positions,
    )


def random_case(seed: int, rows: int, vocab_size: int) -> tuple[Tensor, SamplingTensors]:
    """Rows with every mixture of parameters; every third case has many equal logits."""
    generator = torch.Generator().manual_seed(seed)

    def rand() -> Tensor:
        return torch.rand(rows, generator=generator)

    logits = torch.randn(rows, vocab_size, generator=generator) * (0.1, 1.0, 5.0)[seed % 3]
    if seed % 3 == 1:
        logits = logits.round()
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


def survivors_by_brute_force(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> set[int]:
    """Token ids that the cuts leave, in plain Python."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if 0 < top_k < len(logits):
        ranked = ranked[:top_k]
    weights = [math.exp((logits[token] - max(logits)) / temperature) for token in ranked]
    total, kept, before = sum(weights), set(), 0.0
    for token, weight in zip(ranked, weights, strict=True):
        if (top_p >= 1 or before < top_p * total) and weight >= min_p:
            kept.add(token)
        before += weight
    return kept | {ranked[0]}


@pytest.mark.parametrize("seed", range(60))
def test_the_cuts_leave_what_brute_force_leaves(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocab_size = int(torch.randint(2, 30, (), generator=generator))
    logits = torch.randn(1, vocab_size, generator=generator) * 2
    if seed % 2:
        logits = logits.round()
    temperature, top_p, min_p = 0.5 + seed % 3, (1.0, 0.37, 0.83)[seed % 3], (0.0, 0.11)[seed % 2]
    top_k = seed % (vocab_size + 2)

    found = perturbed_logits(logits, params(1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))

    kept = survivors_by_brute_force(logits[0].tolist(), temperature, top_k, top_p, min_p)
    assert set(found[0].isfinite().nonzero().flatten().tolist()) == kept


@pytest.mark.parametrize(
    "cuts", [{}, {"temperature": 0.7}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 8, "top_p": 0.9}]
)
def test_draws_follow_the_renormalised_distribution(cuts: dict[str, float]) -> None:
    draws = 20_000
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5
    wanted = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | cuts
    kept = sorted(survivors_by_brute_force(logits.tolist(), **wanted))
    expected = (logits[kept] / wanted["temperature"]).softmax(-1) * draws
    positions = torch.arange(draws)

    tokens = load_ops("cpu").sample(
        logits.expand(draws, -1), params(draws, **cuts, seeds=torch.full((draws,), 11), positions=positions)
    )

    counts = torch.bincount(tokens, minlength=12)
    assert counts[kept].sum() == draws
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum().item()
    degrees = len(kept) - 1
    # The 99.9 % point, by Wilson and Hilferty; the draws are fixed, so this passes always or never.
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("seed", range(60))
def test_the_cpu_path_draws_the_references_tokens(seed: int) -> None:
    logits, case = random_case(seed, (1, 3, 8)[seed % 3], (5, 50, 1000, 5)[seed % 4])

    tokens = load_ops("cpu").sample(logits, case)

    assert torch.equal(tokens, load_ops("reference").sample(logits, case))


@pytest.mark.parametrize("seed", range(12))
def test_the_triton_kernel_draws_the_references_tokens(seed: int) -> None:
    logits, case = random_case(seed, (1, 3, 4)[seed % 3], (5, 50, 300, 7)[seed % 4])

    tokens = sample_triton(logits, case)

    assert torch.equal(tokens, load_ops("reference").sample(logits, case))


@pytest.mark.parametrize("cut", [{}, {"top_k": 70}])
def test_the_triton_kernel_streams_over_vocabularies_wider_than_its_tile(cut: dict[str, int]) -> None:
    logits = torch.randn(2, 9001).mul(2).round()
    case = params(2, temperature=torch.tensor([1.0, 0.0]) if not cut else 1.0, **cut)

    tokens = sample_triton(logits, case)

    assert torch.equal(tokens, load_ops("reference").sample(logits, case))


def test_the_triton_kernels_cut_flat_rows_whose_survivors_exceed_what_they_hold() -> None:
    logits = torch.randn(3, 9001, generator=torch.Generator().manual_seed(5)) * 0.1
    case = params(3, top_k=torch.tensor([0, 5000, 6000]), top_p=torch.tensor([0.9, 1.0, 0.95]))

    tokens = sample_triton(logits, case)

    assert torch.equal(tokens, load_ops("reference").sample(logits, case))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_may_be_columns_of_a_table(name: OpsName) -> None:
    logits, case = random_case(4, 3, 50)
    columns = torch.stack((case.temperature, case.top_p, case.min_p), dim=1).unbind(1)
    strided = SamplingTensors(
        temperature=columns[0],
        top_k=case.top_k,
        top_p=columns[1],
        min_p=columns[2],
        seeds=case.seeds,
        positions=case.positions,
    )

    tokens = load_ops(name).sample(logits, strided)

    assert torch.equal(tokens, load_ops("reference").sample(logits, case))


@pytest.mark.parametrize("name", NAMES)
def test_temperature_zero_takes_the_lowest_of_equal_largest_tokens(name: OpsName) -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, -1.0], [5.0, 1.0, 5.0, 5.0]])

    tokens = load_ops(name).sample(logits, params(2, temperature=0.0))

    assert tokens.tolist() == [1, 0]


@pytest.mark.parametrize("name", NAMES)
def test_of_equal_tokens_at_the_top_k_boundary_the_lowest_ids_stay(name: OpsName) -> None:
    rows = 10
    logits = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]).expand(rows, -1).contiguous()

    tokens = load_ops(name).sample(logits, params(rows, top_k=2))

    assert set(tokens.tolist()) == {0, 2}


@pytest.mark.parametrize("name", NAMES)
def test_of_equal_tokens_at_the_top_p_boundary_the_lowest_ids_stay(name: OpsName) -> None:
    rows = 10
    logits = torch.zeros(rows, 8)

    tokens = load_ops(name).sample(logits, params(rows, top_p=0.3))

    assert set(tokens.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("name", NAMES)
def test_a_rows_token_does_not_depend_on_its_company_or_place(name: OpsName) -> None:
    logits, case = random_case(7, 4, 20)
    order = torch.tensor([2, 0, 3])
    moved = SamplingTensors(**{field: value[order] for field, value in vars(case).items()})

    tokens = load_ops(name).sample(logits, case)

    assert torch.equal(load_ops(name).sample(logits[order], moved), tokens[order])


@pytest.mark.parametrize("name", NAMES)
def test_forbidden_tokens_are_never_drawn(name: OpsName) -> None:
    logits = torch.full((8, 6), float("-inf"))
    logits[:, [1, 4]] = 0.0

    tokens = load_ops(name).sample(logits, params(8, temperature=2.0, top_p=torch.linspace(0.6, 1, 8)))

    assert set(tokens.tolist()) == {1, 4}


@pytest.mark.parametrize("name", NAMES)
def test_signed_zeros_are_equal_at_a_boundary(name: OpsName) -> None:
    logits = torch.tensor([[-0.0, 0.0, -5.0]]).expand(4, -1).contiguous()

    tokens = load_ops(name).sample(logits, params(4, top_k=1))

    assert set(tokens.tolist()) == {0}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the interpreter, about the very NaN
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [7, 5000])
def test_rows_that_are_not_finite_are_marked_and_change_no_other(
    name: OpsName, dtype: torch.dtype, vocab_size: int
) -> None:
    ops, inf = load_ops(name), float("inf")
    logits = torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(3)).to(dtype)
    case = params(8, temperature=torch.tensor([0.0, 1.0] * 4), top_k=torch.tensor([0, 0, 0, 5, 0, 0, 0, 5]))
    plain = ops.sample(logits, case)
    spoilt = logits.clone()
    spoilt[1, vocab_size - 1] = float("nan")
    spoilt[2] = -inf
    spoilt[3, 2] = inf
    spoilt[4] = float("nan")
    spoilt[6, : vocab_size - 1] = -inf
    broken = torch.zeros(8, dtype=torch.bool)
    greedy = torch.ones(8, dtype=torch.bool)

    tokens = ops.sample(spoilt, case, broken=broken)
    best = ops.argmax(spoilt, broken=greedy)

    assert broken.tolist() == greedy.tolist() == [False, True, True, True, True, False, False, False]
    assert tokens[[0, 5, 7]].tolist() == plain[[0, 5, 7]].tolist()
    assert best[6] == vocab_size - 1
    assert tokens.min() >= 0 and tokens.max() < vocab_size
