"""What a simulation found, as a table, a course in the terminal and JSON. Pure but for the console it is given."""

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from quire_cli.simulate.outcome import Spread, Summary
from quire_cli.simulate.plot import bars
from quire_cli.simulate.run import Outcome


def as_json(outcomes: Sequence[Outcome]) -> bytes:
    """All figures and courses."""
    found = [
        {"summary": one.summary, "holds": one.summary.holds, "reasons": one.reasons, "course": one.points}
        for one in outcomes
    ]
    return msgspec.json.format(msgspec.json.encode(found))


def show(outcomes: Sequence[Outcome], currency: str, console: Console) -> None:
    """The table, a column for each policy, and the course of the first."""
    console.print(_table([one.summary for one in outcomes], currency))
    for one in outcomes[:1]:
        _show_course(one, console)


def _table(found: Sequence[Summary], currency: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for one in found:
        table.add_column(one.policy, justify="right")
    goal = found[0].objective
    rows: list[tuple[str, list[str]]] = [
        ("requests", [f"{one.requests:,}" for one in found]),
        ("over", [_hours(one.duration_s) for one in found]),
        ("dropped", [f"{one.dropped:,}" for one in found]),
        ("held in the router (most at once)", [f"{one.held:,} ({one.held_most:,})" for one in found]),
        ("time to first token p50 / p95 / p99", [_times(one.ttft) for one in found]),
        ("between tokens p50 / p95 / p99", [_times(one.itl) for one in found]),
        ("prompt / output tokens", [f"{_short(one.prompt_tokens)} / {_short(one.output_tokens)}" for one in found]),
        ("prompt tokens found in caches", [f"{one.cached_share:.1%}" for one in found]),
        ("output tokens/s", [f"{one.output_tokens_per_s:,.0f}" for one in found]),
        ("requests/s", [f"{one.requests_per_s:.2f}" for one in found]),
        (
            f"goodput/s (first {_time(goal.ttft_s)}, between {_time(goal.itl_s)})",
            [f"{one.goodput_per_s:.2f}" for one in found],
        ),
        (f"within the objective (wanted {goal.share:.0%})", [f"{one.good_share:.2%}" for one in found]),
        ("preemptions", [f"{one.preemptions:,}" for one in found]),
        ("replicas mean / most", [f"{one.replicas_mean:.2f} / {one.replicas_most}" for one in found]),
        ("starts / changes", [f"{one.starts} / {one.changes}" for one in found]),
        ("replica-hours", [f"{one.replica_hours:,.1f}" for one in found]),
        ("cost", [f"{one.cost:,.2f} {currency}" for one in found]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    table.add_row("objective held", *("yes" if one.holds else "no" for one in found))
    return table


def _show_course(outcome: Outcome, console: Console) -> None:
    width = max(20, min(console.width - 34, 100))
    console.print(f"\n{outcome.summary.policy}, over {_hours(outcome.summary.duration_s)}:")
    for name, value in (
        ("arrivals", lambda point: float(point.arrivals)),
        ("replicas", lambda point: float(point.existing)),
        ("running", lambda point: float(point.running)),
        ("held and queued", lambda point: float(point.held + point.queued)),
        ("first token p95, s", lambda point: point.ttft_p95_s),
    ):
        line, most = bars(outcome.points, value, width)
        console.print(f"{name:>18} {line} {most:.3g}", highlight=False, markup=False, soft_wrap=True)


def _times(spread: Spread) -> str:
    return f"{_time(spread.p50)} / {_time(spread.p95)} / {_time(spread.p99)}"


def _time(value_s: float) -> str:
    return f"{value_s * 1e3:.0f} ms" if value_s < 1 else f"{value_s:.1f} s"


def _hours(value_s: float) -> str:
    return f"{value_s / 3600:.1f} h" if value_s >= 3600 else f"{value_s:.0f} s"


def _short(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f}"
