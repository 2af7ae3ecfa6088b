"""Columns of text as kubectl writes them: as wide as their content, whatever the terminal. This module must not know what they hold."""

from collections.abc import Sequence
from datetime import datetime, timedelta

_GAP = "   "
_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """One line for the titles and each row. Cells are one line each; the last column is not padded."""
    cells = [list(titles), *([" ".join(cell.split()) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    return [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def age(timestamp: str | None, now: datetime) -> str:
    """The time since an RFC 3339 timestamp in its largest unit, as "3h"; "-" for none."""
    if not timestamp:
        return "-"
    seconds = max(timedelta(), now - datetime.fromisoformat(timestamp)).total_seconds()
    return next((f"{int(seconds // size)}{unit}" for size, unit in _UNITS if seconds >= size), "0s")
