"""The arithmetic of the GPU benchmark: rooflines, idle shares, goals, tolerances, and the report they end in."""

import pytest
import torch
from gpu.compare import difference
from gpu.goals import GOALS, outcomes
from gpu.parity import preference_gaps
from gpu.report import markdown
from gpu.roofline import Rates, idle_share, model_cost
from gpu.sizes import LLAMA_3_8B

from quire_worker.request import SamplingParams

H100 = Rates(read_bytes_per_s=3.0e12, flops_per_s=790e12)
COST = model_cost(LLAMA_3_8B)


def results(kind: str, **parts: object) -> dict[str, object]:
    return {
        "complete": True,
        "date": "2026-01-01",
        "device": {
            "kind": kind,
            "device": "a device",
            "python": "3.12",
            "torch": "2.11",
            "packages": {"triton": "3.6"},
        },
        "ceilings": {
            "read_bytes_per_s": 3.0e12,
            "copy_bytes_per_s": 2.9e12,
            "matrix_flops_per_s": 790e12,
            "read_by": "a kernel",
            "rates": {"read_bytes_per_s": 3.0e12, "flops_per_s": 790e12},
        },
        "model": {
            "name": "a model",
            "num_parameters": 8_030_000_000,
            "dtype": "bfloat16",
            "kv_tokens": 412_000,
            "max_model_len": 16_384,
            "phases_s": {"weights": 1.0},
        },
        "errors": {},
        **parts,
    }


def step(batch: int, step_s: float, context: float = 1024) -> dict[str, float]:
    host = {"host_enqueue_s": 0.001, "host_plan_commit_s": 0.0005, "host_wait_s": 0.002}
    return {"batch": batch, "context": context, "step_s": step_s, "tokens_per_s": batch / step_s} | host


@pytest.mark.parametrize(
    ("batch", "context", "milliseconds"), [(1, 1024, 5.05), (8, 8192, 7.87), (64, 1024, 7.87), (256, 1024, 16.5)]
)
def test_a_decode_steps_floor_is_weights_and_kv_over_bandwidth(batch: int, context: int, milliseconds: float) -> None:
    assert COST.decode_s(H100, batch, context) * 1e3 == pytest.approx(milliseconds, rel=5e-3)


@pytest.mark.parametrize(("num_tokens", "rate"), [(1024, 55_500), (2048, 54_500), (8192, 49_000), (32_768, 35_000)])
def test_a_prompts_floor_is_its_operations_over_the_matrix_rate(num_tokens: int, rate: float) -> None:
    assert num_tokens / COST.prefill_s(H100, num_tokens) == pytest.approx(rate, rel=5e-3)


@pytest.mark.parametrize(("prompt", "output", "rate"), [(1000, 1000, 9_750), (512, 512, 14_200), (128, 2048, 14_200)])
def test_saturation_is_bounded_by_decode_and_prefill_in_series(prompt: int, output: int, rate: float) -> None:
    assert COST.saturated_tokens_per_s(H100, prompt, output, 412_000) == pytest.approx(rate, rel=0.03)


def test_a_short_prompt_cannot_be_faster_than_the_weights_are_read() -> None:
    assert COST.prefill_s(H100, 16) == COST.step_weight_bytes / 3.0e12


@pytest.mark.parametrize(
    ("intervals", "share"),
    [
        ([], 0.0),
        ([(0.0, 4.0)], 0.0),
        ([(0.0, 1.0), (3.0, 4.0)], 0.5),
        ([(3.0, 4.0), (0.0, 2.0), (1.0, 2.5)], 0.125),
        ([(0.0, 10.0), (2.0, 3.0)], 0.0),
    ],
)
def test_idle_is_what_no_interval_covers(intervals: list[tuple[float, float]], share: float) -> None:
    assert idle_share(intervals) == pytest.approx(share)


def test_on_an_h100_the_figure_decides_and_elsewhere_the_share_of_the_roofline() -> None:
    decode = [step(1, 0.0060), step(64, 0.0120)]

    on_h100 = {o.name: o for o in outcomes(results("h100", decode=decode), COST, H100)}
    twice = Rates(read_bytes_per_s=6.0e12, flops_per_s=790e12)
    elsewhere = {o.name: o for o in outcomes(results("h200", decode=decode), COST, twice)}

    assert on_h100["ITL, 1 row, context 1k"].passes is True
    assert on_h100["step, 64 rows, context 1k"].passes is False
    assert on_h100["step, 256 rows, context 1k"].passes is None
    assert elsewhere["ITL, 1 row, context 1k"].passes is False
    assert elsewhere["ITL, 1 row, context 1k"].share == pytest.approx(0.42, abs=0.01)


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    found = outcomes(results("h100"), COST, H100)

    assert [outcome.passes for outcome in found] == [None] * len(GOALS)


def test_the_prefix_caches_cost_compares_the_same_load_with_and_without_it() -> None:
    def sample(tokens_per_s: float, *, caching: bool) -> dict[str, object]:
        counted = {"steps": 1, "requests_ended": 1, "preemptions": 0, "concurrency": 4, "step_s": 0.01, "seconds": 1.0}
        return counted | {
            "prompt": 200, "output": 200, "caching": caching, "tokens_per_s": tokens_per_s, "kv_waste": 0.01,
        }  # fmt: skip

    saturation = [sample(10_000, caching=False), sample(9_950, caching=True)]
    found = {o.name: o for o in outcomes(results("h100", saturation=saturation), COST, H100)}

    assert found["prefix cache's cost at no hits"].found == pytest.approx(0.5)
    assert found["prefix cache's cost at no hits"].passes is True
    assert found["saturation 200/200, output"].passes is False


def test_the_report_has_the_goals_and_leaves_out_what_is_missing() -> None:
    profile = {"batch": 1, "note": "the profiler failed: RuntimeError: no"}
    kernels = [
        {"op": "sample", "name": "1 row", "size_bytes": 1, "flops": 0, "floor_us": 1.0, "note": "RuntimeError: a | b"}
    ]

    text = markdown(results("h100", decode=[step(1, 0.0060)], profiles=[profile], kernels=kernels), COST)

    assert "| ITL, 1 row, context 1k | 6.00 ms | 5.05 ms | 84.1 % | 6.50 ms | 5.90 ms | yes | the figure |" in text
    assert "| 1 | 1,024 | 6.00 | 5.05 | 84.1 % | 167 | 1.00 | 0.50 | 2.00 |" in text
    assert "1 rows: the profiler failed" in text
    assert "a \\| b" in text
    assert "## Saturation" not in text
    assert "Incomplete" not in text


@pytest.mark.parametrize(
    ("found", "expected", "passes"),
    [
        (torch.tensor([1.0, 100.0]), torch.tensor([1.000009, 100.0009]), True),
        (torch.tensor([1.0]), torch.tensor([1.00003]), False),
        (torch.tensor([1.0078125]).bfloat16(), torch.tensor([1.0]).bfloat16(), True),
        (torch.tensor([1.0156250]).bfloat16(), torch.tensor([1.0]).bfloat16(), False),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), False),
        (torch.tensor([float("-inf"), float("nan")]), torch.tensor([float("-inf"), float("nan")]), True),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
        (torch.tensor([1.0]), torch.tensor([1.0, 2.0]), False),
        (torch.tensor([1.0]), torch.tensor([1.0]).bfloat16(), False),
        (torch.zeros(0), torch.zeros(0), True),
    ],
)
def test_results_pass_within_1e5_in_float32_and_one_unit_in_the_last_place_in_narrower_types(
    found: torch.Tensor, expected: torch.Tensor, passes: bool
) -> None:
    assert difference(found, expected).passes is passes


def test_a_sum_that_cancels_may_be_off_by_its_terms_rounding() -> None:
    found, expected = torch.tensor([0.03]).bfloat16(), torch.tensor([0.02]).bfloat16()

    assert not difference(found, expected).passes
    assert difference(found, expected, torch.tensor([4.0])).passes


def test_a_token_that_the_oracle_would_not_take_is_told_by_how_much() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.5], [0.0, 0.5, 4.0]])

    gaps = preference_gaps(logits, [2, 2], SamplingParams(max_tokens=2, temperature=0.0))

    assert gaps.tolist() == [0.5, 0.0]


def test_a_token_just_beyond_a_cut_counts_as_its_distance_from_the_cut() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.99995, -1.0]])

    gaps = preference_gaps(logits, [2], SamplingParams(max_tokens=1, temperature=1.0, top_k=2))

    assert gaps.item() == pytest.approx(5e-5, rel=0.05)
