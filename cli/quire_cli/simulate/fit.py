"""A step cost from measurements: least squares with no negative coefficient, on relative errors. Pure.

With the knee (how many tokens take as long as reading the weights) given, every measured time is linear in the coefficients; the knee is
tried over a range.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quire_cli.simulate.costs import StepCost

KNEES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_SWEEPS = 1500


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One time, and the steps that it was made of."""

    name: str
    time_s: float
    rows: int
    tokens: int
    """Computed in the step."""
    kv_tokens: float = 0.0
    pairs: float = 0.0
    requests: int = 0
    """1: a request's way in and out is in the time."""


def fit(points: Sequence[Measured]) -> tuple[StepCost, dict[str, float]]:
    """The cost, and by how much of each time it is off. At least as many points as coefficients."""
    assert len(points) >= 7, "fewer measurements than coefficients"
    best: tuple[float, int, list[float]] | None = None
    for knee in KNEES:
        table = [_features(point, knee) for point in points]
        found = _least_squares([[value / p.time_s for value in row] for p, row in zip(points, table, strict=True)])
        errors = [_dot(row, found) / p.time_s - 1 for p, row in zip(points, table, strict=True)]
        total = sum(error * error for error in errors)
        if best is None or total < best[0]:
            best = (total, knee, found)
    assert best is not None
    _, knee, (overhead, row, token, kv, pair, request) = best
    cost = StepCost(
        overhead_s=overhead,
        row_s=row,
        weights_s=knee * token,
        token_s=token,
        kv_s=kv,
        pair_s=pair,
        request_s=request,
    )
    return cost, {point.name: predicted_s(cost, point) / point.time_s - 1 for point in points}


def predicted_s(cost: StepCost, point: Measured) -> float:
    """What the cost says of a measured time."""
    return cost.step_s(point.rows, point.tokens, point.kv_tokens, point.pairs) + cost.request_s * point.requests


def _features(point: Measured, knee: int) -> list[float]:
    tokens = float(max(knee, point.tokens))
    return [1.0, float(point.rows), tokens, point.kv_tokens, point.pairs, float(point.requests)]


def _least_squares(rows: Sequence[Sequence[float]]) -> list[float]:
    """x >= 0 that minimises |rows x - 1|, by coordinate descent on scaled columns."""
    width = len(rows[0])
    scale = [sum(row[k] ** 2 for row in rows) ** 0.5 or 1.0 for k in range(width)]
    columns = [[row[k] / scale[k] for row in rows] for k in range(width)]
    found = [0.0] * width
    left = [1.0] * len(rows)
    for _ in range(_SWEEPS):
        for k, column in enumerate(columns):
            step = _dot(column, left)
            new = max(0.0, found[k] + step)
            change = new - found[k]
            if change:
                found[k] = new
                left = [value - change * part for value, part in zip(left, column, strict=True)]
    return [value / one for value, one in zip(found, scale, strict=True)]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
