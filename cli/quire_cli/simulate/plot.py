"""The course of a simulation as a picture: an SVG of stacked panels, and a few lines of blocks for a terminal. Pure; no dependency."""

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10

from quire_cli.simulate.outcome import Point

_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_WIDTH, _LEFT, _RIGHT, _TOP = 960, 70, 20, 46
_PANEL, _GAP = 150, 44
_FONT = 'font-family="system-ui, sans-serif" font-size="12" fill="#374151"'
_BLOCKS = " ▁▂▃▄▅▆▇█"
Series = tuple[str, Sequence[Point]]
"""(policy, its course)."""
_Value = Callable[[Point], float | None]


def svg(title: str, series: Sequence[Series]) -> str:
    """Replicas, requests per second, time to first token and who waits, over time; one line for each policy."""
    panels: list[tuple[str, _Value]] = [
        ("replicas (loading and draining included)", lambda point: float(point.existing)),
        (
            "requests in the system (held, queued, running)",
            lambda point: float(point.held + point.queued + point.running),
        ),
        ("held and queued", lambda point: float(point.held + point.queued)),
        ("time to first token, p95 (s)", lambda point: point.ttft_p95_s),
    ]
    end_s = max((points[-1].at_s for _, points in series if points), default=1.0)
    height = _TOP + 18 + len(panels) * (_PANEL + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" {_FONT}>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="600" fill="#111827">{escape(title)}</text>',
        *_legend([name for name, _ in series]),
    ]
    for place, (name, value) in enumerate(panels):
        top = _TOP + 24 + place * (_PANEL + _GAP)
        parts += _panel(name, value, series, end_s, top)
    return "\n".join([*parts, "</svg>", ""])


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], float(_LEFT)
    for place, name in enumerate(names):
        colour = _COLOURS[place % len(_COLOURS)]
        parts.append(f'<rect x="{x:.0f}" y="32" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18:.0f}" y="38">{escape(name)}</text>')
        x += 36 + 7 * len(name)
    return parts


def _panel(name: str, value: _Value, series: Sequence[Series], end_s: float, top: float) -> list[str]:
    bottom, width = top + _PANEL, _WIDTH - _LEFT - _RIGHT
    values = [found for _, points in series for point in points if (found := value(point)) is not None]
    most = _nice(max(values, default=0.0))
    parts = [f'<text x="{_LEFT}" y="{top - 6:.0f}" font-weight="600">{escape(name)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * _PANEL
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{most * share:g}</text>')
    for at_s in _ticks(end_s):
        x = _LEFT + width * at_s / end_s
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{_clock(at_s, end_s)}</text>')
    for place, (_, points) in enumerate(series):
        line: list[str] = []
        for at_s, found in _thinned(points, value):
            x, y = _LEFT + width * at_s / end_s, bottom - _PANEL * min(found, most) / most
            line.append(f"{x:.1f},{y:.1f}")
        colour = _COLOURS[place % len(_COLOURS)]
        parts.append(f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    return parts


def _thinned(points: Sequence[Point], value: _Value) -> list[tuple[float, float]]:
    """At most one for each pixel or so: the largest of those that fall together."""
    step = max(1, ceil(len(points) / (_WIDTH - _LEFT - _RIGHT)))
    kept = []
    for start in range(0, len(points), step):
        found = [known for point in points[start : start + step] if (known := value(point)) is not None]
        if found:
            kept.append((points[start].at_s, max(found)))
    return kept


def _nice(most: float) -> float:
    """A round number that is not less."""
    if most <= 0:
        return 1.0
    unit = 10.0 ** floor(log10(most))
    return next(unit * factor for factor in (1, 2, 4, 5, 10) if unit * factor >= most * 0.999)


def _ticks(end_s: float) -> list[float]:
    step = next(
        (s for s in (10, 30, 60, 300, 600, 1800, 3600, 7200, 14400, 21600, 86400) if end_s / s <= 12), 7 * 86400
    )
    return [place * float(step) for place in range(int(end_s / step) + 1)]


def _clock(at_s: float, end_s: float) -> str:
    if end_s <= 600:
        return f"{at_s:.0f} s"
    return f"{at_s / 60:.0f} min" if end_s <= 7200 else f"{at_s / 3600:g} h"


def bars(points: Sequence[Point], value: _Value, width: int) -> tuple[str, float]:
    """One line of blocks, and what a full one stands for."""
    step = max(1, ceil(len(points) / max(1, width)))
    found = [
        max((known for point in points[start : start + step] if (known := value(point)) is not None), default=0.0)
        for start in range(0, len(points), step)
    ]
    most = max(found, default=0.0)
    if most <= 0:
        return " " * len(found), 0.0
    return "".join(_BLOCKS[ceil(one / most * (len(_BLOCKS) - 1))] for one in found), most
