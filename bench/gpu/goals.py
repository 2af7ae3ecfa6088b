"""What the engine must reach on the Llama-3-8B shape in bf16, and whether results do. Pure: from results to verdicts.

A goal is a figure on an H100 and the share of the roofline that it stands for. On an H100 the figure decides; elsewhere the share of
the roofline that is drawn with what was calibrated there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu.roofline import ModelCost, Rates

Results = dict[str, Any]
H100 = "h100"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One line of the table."""

    name: str
    unit: str
    read: Callable[[Results], float | None]
    """The figure, None where it was not measured."""
    must: float
    """On an H100."""
    stretch: float | None
    is_less_better: bool
    roofline: Callable[[ModelCost, Rates, Results], float] | None = None
    """In the figure's unit, None where there is none."""
    must_share: float | None = None
    """Of the roofline."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one goal."""

    name: str
    unit: str
    found: float | None
    must: float
    stretch: float | None
    roofline: float | None
    share: float | None
    passes: bool | None
    """None: not measured."""
    judged_by: str


def _step_ms(batch: int) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        found = [row for row in results.get("decode", ()) if row["batch"] == batch]
        return found[0]["step_s"] * 1e3 if found else None

    return read


def _step_floor(batch: int) -> Callable[[ModelCost, Rates, Results], float]:
    """At the contexts that were run."""

    def floor(cost: ModelCost, rates: Rates, results: Results) -> float:
        found = [row["context"] for row in results.get("decode", ()) if row["batch"] == batch]
        return cost.decode_s(rates, batch, found[0] if found else 1024) * 1e3

    return floor


def _prefill(num_tokens: int) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        found = [row for row in results.get("prefill", ()) if row["prompt"] == num_tokens]
        return found[0]["tokens_per_s"] if found else None

    return read


def _saturation(prompt: int, output: int, *, caching: bool = False) -> Callable[[Results], dict[str, Any] | None]:
    def find(results: Results) -> dict[str, Any] | None:
        for row in results.get("saturation", ()):
            if (row["prompt"], row["output"], row["caching"]) == (prompt, output, caching):
                return dict(row)
        return None

    return find


def _saturation_rate(prompt: int, output: int) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        found = _saturation(prompt, output)(results)
        return None if found is None else found["tokens_per_s"]

    return read


def _saturation_bound(prompt: int, output: int) -> Callable[[ModelCost, Rates, Results], float]:
    def bound(cost: ModelCost, rates: Rates, results: Results) -> float:
        return cost.saturated_tokens_per_s(rates, prompt, output, int(results["model"]["kv_tokens"]))

    return bound


def _idle_percent(results: Results) -> float | None:
    """The worst over the batches that were profiled: 1 - busy / the unprofiled step."""
    shares = [row["idle_share"] for row in results.get("profiles", ()) if row.get("idle_share") is not None]
    return max(shares) * 100 if shares else None


def _waste_percent(results: Results) -> float | None:
    found = _saturation(1000, 1000)(results)
    return None if found is None or found["kv_waste"] is None else found["kv_waste"] * 100


def _caching_cost_percent(results: Results) -> float | None:
    without, with_cache = _saturation(200, 200)(results), _saturation(200, 200, caching=True)(results)
    if without is None or with_cache is None:
        return None
    return float(1 - with_cache["tokens_per_s"] / without["tokens_per_s"]) * 100


GOALS = (
    Goal(
        name="ITL, 1 row, context 1k",
        unit="ms",
        read=_step_ms(1),
        must=6.5,
        stretch=5.9,
        is_less_better=True,
        roofline=_step_floor(1),
        must_share=0.78,
    ),
    Goal(
        name="step, 64 rows, context 1k",
        unit="ms",
        read=_step_ms(64),
        must=10.5,
        stretch=9.3,
        is_less_better=True,
        roofline=_step_floor(64),
        must_share=0.75,
    ),
    Goal(
        name="step, 256 rows, context 1k",
        unit="ms",
        read=_step_ms(256),
        must=22.0,
        stretch=19.4,
        is_less_better=True,
        roofline=_step_floor(256),
        must_share=0.75,
    ),
    Goal(
        name="prefill, 2,048 tokens",
        unit="tok/s",
        read=_prefill(2048),
        must=35_000,
        stretch=41_000,
        is_less_better=False,
        roofline=lambda cost, rates, results: 2048 / cost.prefill_s(rates, 2048),
        must_share=0.65,
    ),
    Goal(
        name="TTFT idle, 232-token prompt",
        unit="ms",
        read=lambda results: results["first_token"]["seconds"] * 1e3 if results.get("first_token") else None,
        must=30.0,
        stretch=20.0,
        is_less_better=True,
        roofline=lambda cost, rates, results: cost.prefill_s(rates, 232) * 1e3,
    ),
    Goal(
        name="saturation 1000/1000, output",
        unit="tok/s",
        read=_saturation_rate(1000, 1000),
        must=6_500,
        stretch=7_500,
        is_less_better=False,
        roofline=_saturation_bound(1000, 1000),
        must_share=0.67,
    ),
    Goal(
        name="saturation 200/200, output",
        unit="tok/s",
        read=_saturation_rate(200, 200),
        must=12_500,
        stretch=16_000,
        is_less_better=False,
        roofline=_saturation_bound(200, 200),
        must_share=0.62,
    ),
    Goal(name="GPU idle in decode", unit="%", read=_idle_percent, must=5.0, stretch=2.0, is_less_better=True),
    Goal(name="KV slots wasted, 1000/1000", unit="%", read=_waste_percent, must=4.0, stretch=None, is_less_better=True),
    Goal(
        name="prefix cache's cost at no hits",
        unit="%",
        read=_caching_cost_percent,
        must=1.0,
        stretch=None,
        is_less_better=True,
    ),
)


def outcomes(results: Results, cost: ModelCost, rates: Rates) -> list[Outcome]:
    """Every goal's, in order."""
    return [_outcome(goal, results, cost, rates) for goal in GOALS]


def _outcome(goal: Goal, results: Results, cost: ModelCost, rates: Rates) -> Outcome:
    found = goal.read(results)
    roofline = None if goal.roofline is None else goal.roofline(cost, rates, results)
    share = None
    if found and roofline:
        share = roofline / found if goal.is_less_better else found / roofline
    by_share = results["device"]["kind"] != H100 and goal.must_share is not None
    passes: bool | None = None
    if found is not None and by_share:
        assert goal.must_share is not None
        passes = share is not None and share >= goal.must_share
    elif found is not None:
        passes = found <= goal.must if goal.is_less_better else found >= goal.must
    return Outcome(
        name=goal.name,
        unit=goal.unit,
        found=found,
        must=goal.must,
        stretch=goal.stretch,
        roofline=roofline,
        share=share,
        passes=passes,
        judged_by=f"{goal.must_share:.0%} of the roofline" if by_share else "the figure",
    )
