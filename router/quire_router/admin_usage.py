"""What /admin/usage shows, and in which form: sums, or the records themselves; JSON, or CSV that a spreadsheet may open safely."""

import csv
import datetime
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from quire_contract.openai.errors import invalid
from quire_router.prices import decimal_of
from quire_router.usage.record import GROUPS, KEPT_DAYS, SUM_FIELDS, Group, Query, Sums, UsageRecord

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
MAX_NAME_CHARS = 500
_COUNTS = tuple(name for name in SUM_FIELDS if name != "cost_nano")
RECORD_COLUMNS = tuple("cost" if name == "cost_nano" else name for name in UsageRecord.__struct_fields__)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are full-width ones."""
_KNOWN = frozenset({"tenant", "model", "from", "to", "group_by", "format", "limit", "cursor"})


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A checked query string."""

    query: Query
    group_by: tuple[str, ...] | None
    """None: records, not sums."""
    is_csv: bool
    limit: int
    cursor: str | None


def parse(values: Mapping[str, str], today: datetime.date) -> Asked:
    """What is asked for: this month, if no days are named. ApiError 400 names the parameter."""
    unknown = sorted(set(values) - _KNOWN)
    if unknown:
        raise invalid(unknown[0][:50], f"is not known; use {', '.join(sorted(_KNOWN))}")
    first = _day(values, "from", today.replace(day=1))
    last = _day(values, "to", today)
    if last < first:
        raise invalid("to", "is before from")
    if (last - first).days >= KEPT_DAYS:
        raise invalid("from", f"is {KEPT_DAYS} days or more before to; ask for less at once")
    form = values.get("format", "json")
    if form not in ("json", "csv"):
        raise invalid("format", "use json or csv")
    return Asked(
        query=Query(
            from_day=str(first), to_day=str(last), tenant=_name(values, "tenant"), model=_name(values, "model")
        ),
        group_by=_group_by(values),
        is_csv=form == "csv",
        limit=limit_of(values, DEFAULT_LIMIT, MAX_LIMIT),
        cursor=values.get("cursor"),
    )


def limit_of(values: Mapping[str, str], default: int, most: int) -> int:
    """The parameter `limit`. ApiError 400."""
    text = values.get("limit", str(default))
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
        raise invalid("limit", f"use 1 to {most}")
    return int(text)


def grouped(sums: Iterable[tuple[Group, Sums]], group_by: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of sums over what is not in `group_by`, sorted by what is."""
    rows: dict[tuple[str, ...], Sums] = {}
    for group, of_group in sums:
        key = tuple(group[GROUPS.index(name)] for name in group_by)
        rows.setdefault(key, Sums()).add(of_group)
    return [
        {
            **dict(zip(group_by, key, strict=True)),
            **{name: getattr(of_key, name) for name in _COUNTS},
            "cost": decimal_of(of_key.cost_nano),
        }
        for key, of_key in sorted(rows.items(), key=lambda row: row[0])
    ]


def sum_columns(group_by: Sequence[str]) -> tuple[str, ...]:
    """Of rows from `grouped`."""
    return (*group_by, *_COUNTS, "cost")


def record_row(record: UsageRecord) -> dict[str, Any]:
    """A record with its cost as a decimal number of the currency."""
    row = msgspec.structs.asdict(record)
    return {name: decimal_of(row["cost_nano"]) if name == "cost" else row[name] for name in RECORD_COLUMNS}


def csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> bytes:
    """RFC 4180. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    if header:
        writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in columns])
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _group_by(values: Mapping[str, str]) -> tuple[str, ...] | None:
    if "group_by" not in values:
        return None
    names = tuple(name for name in values["group_by"].split(",") if name)
    if not set(names) <= set(GROUPS) or len(set(names)) != len(names):
        raise invalid("group_by", f"use some of {', '.join(GROUPS)}, separated by commas; empty: one sum of all")
    return names


def _name(values: Mapping[str, str], name: str) -> str | None:
    value = values.get(name) or None
    if value is not None and len(value) > MAX_NAME_CHARS:
        raise invalid(name, f"is longer than {MAX_NAME_CHARS} characters")
    return value


def _day(values: Mapping[str, str], name: str, default: datetime.date) -> datetime.date:
    text = values.get(name)
    if not text:
        return default
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise invalid(name, "is no day such as 2026-11-21") from None
    if not 1970 <= day.year < 9999:
        raise invalid(name, "is no day such as 2026-11-21")
    return day
