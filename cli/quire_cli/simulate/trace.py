"""Reads a trace of requests: CSV with a header, or one JSON object a line.

Names of columns that are understood, whatever their case, spaces and underscores:

    time            time, timestamp, arrival, arrival_time, arrived_at, at_s; seconds, or a date and time; milliseconds where `hash_ids`
                    stand beside
    time_ms         time_ms, timestamp_ms, arrival_ms, in place of time
    prompt tokens   prompt, prompt_tokens, input_length, input_tokens, context_tokens, request_tokens, num_prefill_tokens
    output tokens   output, output_tokens, output_length, generated_tokens, response_tokens, num_decode_tokens
    session         session, session_id, conversation_id: later requests of one begin with the earlier ones' prompt and answer
    prefix group    prefix_group with prefix_tokens: a beginning that a group shares
    hash_ids        names of the prompt's blocks of 512 tokens (Mooncake); equal beginnings are shared
    tenant, priority

So the traces of Azure (AzurePublicDataset, LLM inference 2023 and 2024), Mooncake and BurstGPT are read as they are published.
"""

import csv
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import msgspec

from quire_cli.errors import CommandError
from quire_cli.simulate.request import Request, Segment

HASH_BLOCK = 512
"""Tokens that one of Mooncake's hash_ids stands for."""
MAX_REQUESTS = 20_000_000
"""Of one simulation."""
MAX_SPAN_S = 366 * 86_400.0
"""From the first request to the last: what no trace is longer than, and a unit that was mistaken is."""
MAX_PRIORITY = 2**31
_NAMES: Mapping[str, tuple[str, ...]] = {
    "time": ("time", "timestamp", "arrival", "arrival_time", "arrived_at", "at_s", "time_s"),
    "time_ms": ("time_ms", "timestamp_ms", "arrival_ms"),
    "prompt": (
        "prompt", "prompt_tokens", "input_length", "input_tokens", "context_tokens", "request_tokens", "num_prefill_tokens",
    ),
    "output": (
        "output", "output_tokens", "output_length", "generated_tokens", "response_tokens", "num_decode_tokens",
    ),
    "session": ("session", "session_id", "conversation_id", "conversation"),
    "group": ("prefix_group", "group"),
    "group_tokens": ("prefix_tokens", "group_tokens"),
    "hash_ids": ("hash_ids",),
    "tenant": ("tenant",),
    "priority": ("priority",),
}  # fmt: skip
_NEEDED = ("time", "prompt", "output")


def read_trace(path: Path, max_len: int) -> list[Request]:
    """All requests in the order of time, beginning at 0. What is longer than `max_len` together is cut.

    CommandError naming line and fix."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            found = _rows(path, file, maker := _Maker(path, max_len))
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(f"{path}: is not UTF-8 text") from None
    if not found:
        raise CommandError(f"{path}: holds no requests")
    found.sort(key=lambda row: row.at_s)
    start_s, span_s = found[0].at_s, found[-1].at_s - found[0].at_s
    if span_s > MAX_SPAN_S:
        days = f"{span_s / 86_400:.4g} days from the first request to the last, at most {MAX_SPAN_S / 86_400:g} are simulated"
        raise CommandError(f"{path}: time: {days}; write seconds, or cut it")
    return [maker.request(number, row, start_s) for number, row in enumerate(found)]


def _rows(path: Path, file: TextIO, maker: "_Maker") -> "list[_Row]":
    """All of them, in the file's order."""
    first = next((line for line in file if line.strip()), "")
    lines = itertools.chain([first], file) if first else iter(())
    rows = _json_rows(path, lines) if first.lstrip().startswith(("{", "[")) else _csv_rows(path, lines)
    found: list[_Row] = []
    for line, fields in rows:
        if len(found) == MAX_REQUESTS:
            raise CommandError(f"{path}:{line}: is beyond the {MAX_REQUESTS} requests that are taken at most; cut it")
        found.append(maker.read(line, fields))
    return found


class _Row(msgspec.Struct, frozen=True, gc=False):
    at_s: float
    prompt: int
    output: int
    session: str
    group: str
    group_tokens: int
    hash_ids: tuple[str, ...]
    tenant: str
    priority: int


def _json_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    known: dict[tuple[str, ...], dict[str, str]] = {}
    for line, one in enumerate(lines, start=1):
        if not one.strip():
            continue
        try:
            found = msgspec.json.decode(one)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise CommandError(f"{path}:{line}: is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise CommandError(
                f"{path}:{line}: is not a JSON object; write one request a line, without brackets around them"
            )
        names = known.get(keys := tuple(found))
        if names is None:
            names = known[keys] = _columns(path, line, list(found))
        yield line, {field: found[name] for field, name in names.items()}


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines)
    try:
        header = next(reader, None)
        if header is None:
            raise CommandError(f"{path}: is empty")
        places = {field: header.index(name) for field, name in _columns(path, 1, header).items()}
        for row in reader:
            if not row:
                continue
            if len(row) < len(header):
                raise CommandError(f"{path}:{reader.line_num}: has {len(row)} columns, the header has {len(header)}")
            yield reader.line_num, {field: row[place] for field, place in places.items()}
    except csv.Error as error:
        raise CommandError(f"{path}:{reader.line_num}: is not CSV: {error}; is a quotation mark open?") from None


def _columns(path: Path, line: int, header: list[str]) -> dict[str, str]:
    """Field -> the name that it has here."""
    plain = {_plain(name): name for name in header}
    found = {
        field: plain[name]
        for field, names in _NAMES.items()
        if (name := next((n for n in map(_plain, names) if n in plain), None))
    }
    missing = [field for field in _NEEDED if field not in found and f"{field}_ms" not in found]
    if missing:
        wanted = "; ".join(f"{field}: one of {', '.join(_NAMES[field][:4])}" for field in missing)
        raise CommandError(f"{path}:{line}: has columns {', '.join(header) or 'none'}, and lacks {wanted}")
    return found


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


class _Maker:
    """Rows to requests."""

    def __init__(self, path: Path, max_len: int) -> None:
        self._path, self._max_len = path, max_len
        self._reached: dict[str, tuple[tuple[Segment, ...], int]] = {}
        """Session -> (its chain so far, tokens of it)."""
        self._is_dated: bool | None = None
        """Whether times are dates; None: none was read yet."""

    def read(self, line: int, fields: dict[str, Any]) -> _Row:
        """Values of a row. CommandError naming what is wrong."""
        hash_ids = self._value(line, "hash_ids", fields.get("hash_ids") or (), _hash_ids)
        return _Row(
            self._at_s(line, fields, is_mooncake=bool(hash_ids)),
            self._value(line, "prompt tokens", fields["prompt"], _count),
            max(1, self._value(line, "output tokens", fields["output"], _count)),
            str(fields.get("session") or ""),
            str(fields.get("group") or ""),
            self._value(line, "prefix_tokens", fields.get("group_tokens") or 0, _count),
            hash_ids,
            str(fields.get("tenant") or ""),
            self._value(line, "priority", fields.get("priority") or 0, _priority),
        )

    def _at_s(self, line: int, fields: dict[str, Any], *, is_mooncake: bool) -> float:
        if "time" not in fields:
            return float(self._value(line, "time_ms", fields["time_ms"], _milliseconds)) / 1000
        at_s = float(self._value(line, "time", fields["time"], _seconds))
        is_dated = math.isnan(_number(fields["time"]))
        if self._is_dated not in (None, is_dated):
            found, before = ("a date", "seconds") if is_dated else ("seconds", "dates")
            raise CommandError(f"{self._path}:{line}: time: is {found}, and {before} before; write all of them alike")
        self._is_dated = is_dated
        return at_s / 1000 if is_mooncake else at_s

    def request(self, number: int, row: _Row, start_s: float) -> Request:
        """The row as a request; rows come in the order of time."""
        output = min(row.output, self._max_len // 2)
        prompt = max(1, min(row.prompt, self._max_len - output - 1))
        return Request(
            number=number,
            at_s=row.at_s - start_s,
            prompt=prompt,
            output=output,
            chain=self._chain(number, row, prompt, output),
            priority=row.priority,
            tenant=row.tenant,
        )

    def _chain(self, number: int, row: _Row, prompt: int, output: int) -> tuple[Segment, ...]:
        if row.hash_ids:
            ends = [(f"h{name}", (place + 1) * HASH_BLOCK) for place, name in enumerate(row.hash_ids)]
            chain = tuple((name, end) for name, end in ends if end <= prompt)
            return chain if chain and chain[-1][1] == prompt else (*chain, (f"r{number}", prompt))
        begun = self._reached.get(row.session) if row.session else None
        if begun is not None and begun[1] < prompt:
            chain = (*begun[0][:-1], (begun[0][-1][0], prompt))
        else:
            own = f"s{row.session}@{number}" if row.session else f"r{number}"
            shared = min(row.group_tokens, prompt - 1) if row.group else 0
            chain = ((f"g{row.group}", shared), (own, prompt)) if shared > 0 else ((own, prompt),)
        if row.session:
            self._reached[row.session] = (chain, prompt + output)
        return chain

    def _value(self, line: int, what: str, value: Any, parse: "Callable[[Any], Any]") -> Any:
        try:
            return parse(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise CommandError(f"{self._path}:{line}: {what}: {str(value)!r:.40}: {error}") from None


def _seconds(value: Any) -> float:
    """A number, or a date and time."""
    if value is None or isinstance(value, (bool, list, dict)):
        raise ValueError("is neither seconds nor a date and time such as 2026-11-21 18:17:03.97")
    try:
        seconds = float(value)
    except ValueError:
        text = str(value).strip().replace("Z", "+00:00")
        head, dot, fraction = text.partition(".")
        if dot:  # more digits than microseconds, as Azure writes them
            digits = len(fraction) - len(fraction.lstrip("0123456789"))
            text = f"{head}.{fraction[:digits][:6].ljust(6, '0')}{fraction[digits:]}"
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise ValueError("is neither seconds nor a date and time such as 2026-11-21 18:17:03.97") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("write seconds, 0 or more")
    return seconds


def _hash_ids(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.strip("[] ").replace(",", " ").split())
    if not isinstance(value, (list, tuple)):
        raise ValueError("write a list of block names")
    return tuple(map(str, value))


def _milliseconds(value: Any) -> float:
    number = _number(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError("write milliseconds, 0 or more")
    return number


def _number(value: Any) -> float:
    """NaN where it is none, so that the caller's words say what to write."""
    try:
        return float(value)
    except (ValueError, TypeError):
        return math.nan


def _count(value: Any) -> int:
    number = _number(value)
    if not math.isfinite(number) or number < 0 or number != int(number):
        raise ValueError("write a whole number of tokens, 0 or more")
    return int(number)


def _priority(value: Any) -> int:
    number = _number(value)
    if not math.isfinite(number) or number != int(number):
        raise ValueError("write a whole number")
    if abs(number) > MAX_PRIORITY:
        raise ValueError(f"write a number from {-MAX_PRIORITY} to {MAX_PRIORITY}")
    return int(number)
