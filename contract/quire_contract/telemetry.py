"""Log lines of every process: key=value, or JSON, one line each, with the same keys in the same order.

Fields never hold prompts, answers, headers or keys; fields so named are blanked, in case somebody tries.
"""

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

_FIELDS = "quire_fields"
SECRET_FIELDS = frozenset(
    {
        "prompt",
        "messages",
        "text",
        "content",
        "body",
        "headers",
        "authorization",
        "api_key",
        "token",
        "cache_salt",
        "secret",
    }
)
_BLANKED = "[not logged]"
_PLAIN = re.compile(r'[^ "=]+')
_MAX_VALUE_CHARS = 2000
_MAX_TRACEBACK_CHARS = 12_000
_ERROR = "error"
_ERROR_LABEL = "error="
_REPEAT_S = 60.0
_OWN_FIELDS = ("ts", "level", "process", "logger", "event")
_MAX_HEADS = 512
"""Of events and of names of fields, which are the code's, those that are made once."""
WRITE_AFTER_S = 0.05
"""Lines of an `EventLine` are written together with those that follow within this time."""
_MAX_HELD_LINES = 256
_MAX_KNOWN = 64
"""Texts of each field of an `EventLine` that are quoted once: a service's names, not what differs in every line."""
Later = Callable[[float, Callable[[], object]], object]
"""Calls something in so many seconds, as an event loop's `call_later` does."""
Label = tuple[str, bool]
"""How a field's value begins, and whether it must not be written."""
Pair = Callable[[str, Any, bool], str]
"""Label, value, whether it is secret: as it is written."""
Compiled = Callable[[tuple[Label, ...], Pair], Any]
"""Makes what writes lines with these labels as `EventLine` does, by `write(begin, values)` (None: it cannot); `Pair` for odd values."""


def log_event(logger: logging.Logger, level: int, event: str, /, **fields: Any) -> None:
    """Log that `event` happened; `fields` give its numbers and names, None ones are left out."""
    logger.log(level, "%s", event, extra={_FIELDS: fields})


class Trouble:
    """Trouble that may go on for long while something is tried again and again: when to write a line about it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds."""
        self._clock = clock
        self._told = ""
        self._told_s = float("-inf")

    def is_news(self, what: str) -> bool:
        """Whether to tell of it: it is new, it has changed, or the last line about it is a minute old."""
        now_s = self._clock()
        if what == self._told and now_s - self._told_s < _REPEAT_S:
            return False
        self._told, self._told_s = what, now_s
        return True

    def is_over(self) -> bool:
        """Called when all is well; True once after trouble that was told."""
        had_any = bool(self._told)
        self._told, self._told_s = "", float("-inf")
        return had_any


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each record at once, but lets an `EventLine` write many of its lines together: a system call for each would cost as much as
    the line itself. Lines keep their order. The logging module flushes it when the process ends; killed, it loses WRITE_AFTER_S."""

    formatter: "LogFormatter"

    def __init__(self, stream: TextIO, formatter: "LogFormatter") -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self.batch: list[tuple[EventLine, float, tuple[Any, ...]]] = []
        """Lines that are written together: whose, when it happened in Unix time, and its values. Takes further ones without a lock: it is
        only ever added to, and cut at its beginning."""
        self.num_batches = 0
        """That were written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write what is held, and the record."""
        self._write_held()
        super().emit(record)

    def see_to(self, num_held: int, later: Later) -> None:
        """Have the batch written soon, as it has begun, or now, as it is full."""
        if num_held >= _MAX_HELD_LINES:
            self.flush()
        else:
            later(WRITE_AFTER_S, self.flush)

    def flush(self) -> None:
        """Write what is held."""
        self._write_held()
        with contextlib.suppress(OSError, ValueError):  # the reader has gone: there is nobody to be told
            super().flush()

    def _write_held(self) -> None:
        with self.lock:  # type: ignore[union-attr]  # None only before a handler is made
            while held := self.batch[
                :
            ]:  # what comes before the cut is behind these, and nobody else is told to see to it
                del self.batch[: len(held)]
                self.num_batches += 1
                lines = [line.text(self.formatter, created_s, values) for line, created_s, values in held]
                with contextlib.suppress(OSError, ValueError):
                    self.stream.write(self.terminator.join([*lines, ""]))


class EventLine:
    """One event that happens all the time and has the same fields each time. Logs it as `log_event` does, for a third of the cost where its
    lines go to a `LineHandler` alone: no record is made, and the line is written soon instead of at once, with others. Where they go is
    looked up for the first of these."""

    def __init__(
        self,
        logger: logging.Logger,
        level: int,
        event: str,
        fields: Sequence[str],
        later: Later,
        compiled: Compiled | None = None,
    ) -> None:
        """`compiled`: the same in compiled code."""
        self._compiled = compiled
        self._write: Callable[[str, tuple[Any, ...]], str | None] | None = None
        self._logger = logger
        self._level = level
        self._event = event
        self._fields = tuple(fields)
        self._later = later
        self._handler: LineHandler | None = None
        self._batch_number = -1
        """Of the handler's, for which it was looked up."""
        self._made_for: LogFormatter | None = None
        self._head = ""
        self._labels: tuple[tuple[str, bool, dict[str, str]], ...] = ()

    def log(self, *values: Any) -> None:
        """The event happened; `values` are its fields', in their order, and do not change. Those that are None are left out."""
        handler = self._handler
        if handler is None or handler.num_batches != self._batch_number:
            if not self._logger.isEnabledFor(self._level):
                return
            handler = self._handler = self._found()
            if handler is None:
                log_event(self._logger, self._level, self._event, **dict(zip(self._fields, values, strict=True)))
                return
            self._batch_number = handler.num_batches
        batch = handler.batch
        batch.append((self, time.time(), values))
        num_held = len(batch)
        if num_held == 1 or num_held >= _MAX_HELD_LINES:
            handler.see_to(num_held, self._later)

    def _found(self) -> LineHandler | None:
        """What its lines may be given to."""
        handler = _only_handler(self._logger)
        if handler is None or handler.formatter.as_json or handler.filters or self._logger.filters:
            return None
        return None if self._level < handler.level else handler

    def text(self, formatter: "LogFormatter", created_s: float, values: tuple[Any, ...]) -> str:
        """The line of what happened at a Unix time."""
        if formatter is not self._made_for:
            self._made_for = formatter
            self._head = formatter.head(logging.getLevelName(self._level), self._logger.name, self._event)
            self._labels = tuple((*formatter.label(field), {}) for field in self._fields)
            if self._compiled is not None:
                labels = tuple((label, is_secret) for label, is_secret, _ in self._labels)
                self._write = self._compiled(labels, _pair_of(formatter)).write
        begin = formatter.begin(created_s, self._head)
        line = None if self._write is None else self._write(begin, values)
        return self._formatted(formatter, begin, values) if line is None else line

    def _formatted(self, formatter: "LogFormatter", begin: str, values: Sequence[Any]) -> str:
        """As `LogFormatter.line`; most of a field's texts come again and again."""
        parts = [begin]
        for (label, is_secret, known), value in zip(self._labels, values, strict=True):
            if value is None:
                continue
            kind = type(value)
            if kind is int and not is_secret:
                parts.append(f"{label}{value}")
                continue
            text = known.get(value) if kind is str else None
            if text is None:
                text = formatter.pair(label, value, is_secret=is_secret)
                if kind is str and len(known) < _MAX_KNOWN:
                    known[value] = text
            parts.append(text)
        return " ".join(parts)


def _pair_of(formatter: "LogFormatter") -> Pair:
    return lambda label, value, is_secret: formatter.pair(label, value, is_secret=is_secret)


def _only_handler(logger: logging.Logger) -> LineHandler | None:
    """The one that all lines of the logger go to. None: there are others, or none."""
    above: logging.Logger | None = logger
    while above is not None:
        if above.handlers:
            only = above.handlers[0]
            is_only = len(above.handlers) == 1 and (above.parent is None or not above.propagate)
            return only if is_only and isinstance(only, LineHandler) else None
        if not above.propagate:
            return None
        above = above.parent
    return None


class LogFormatter(logging.Formatter):
    """ts=... level=... logger=... event="..." key=value ..., or the same as a JSON object."""

    def __init__(self, *, as_json: bool = False, process: str | None = None) -> None:
        """`process` names the process in every line, such as "router"."""
        super().__init__()
        self.as_json = as_json
        self._process = process
        self._date = (-1, "")
        self._heads: dict[tuple[str, str, str], str] = {}
        self._labels: dict[str, tuple[str, bool]] = {}

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record holds."""
        if self.as_json:
            return json.dumps(self._fields_of(record), ensure_ascii=False, default=str)
        extra = getattr(record, _FIELDS, None)
        if record.exc_info is not None or not isinstance(extra, dict):
            return " ".join(
                f"{key}={_quoted(value, _max_chars(key))}" for key, value in self._fields_of(record).items()
            )
        head = self.head(record.levelname, record.name, record.getMessage())
        fields = [(self.label(key), value) for key, value in extra.items()]
        return self.line(record.created, head, fields)

    def line(self, created_s: float, head: str, fields: Iterable[tuple[tuple[str, bool], Any]]) -> str:
        """The line of an event at a Unix time: what `head` made of it, and what `label` made of its fields' names, with their values."""
        pairs = [self.pair(label, value, is_secret=secret) for (label, secret), value in fields if value is not None]
        return " ".join([self.begin(created_s, head), *pairs])

    def begin(self, created_s: float, head: str) -> str:
        """How the line of an event at a Unix time begins: with that in UTC, in ISO 8601 with milliseconds."""
        second = int(created_s)
        known, date = self._date
        if second != known:
            date = self._date_of(second)
        return f"ts={date}.{int((created_s - second) * 1000):03d}+00:00 {head}"

    def pair(self, label: str, value: Any, *, is_secret: bool) -> str:
        """A field with its value."""
        kind = type(value)
        if is_secret:
            value = _BLANKED
        elif kind is int:
            return f"{label}{value}"
        elif kind is float:
            return f"{label}{value:.6g}"
        return label + _quoted(value, _MAX_TRACEBACK_CHARS if label == _ERROR_LABEL else _MAX_VALUE_CHARS)

    def head(self, level: str, logger: str, event: str) -> str:
        """What begins every line of one event, made once."""
        key = (level, logger, event)
        head = self._heads.get(key)
        if head is None:
            fields = {"level": level.lower(), "process": self._process, "logger": logger, "event": event}
            parts = [
                f"{name}={_quoted(value, _MAX_VALUE_CHARS)}" for name, value in fields.items() if value is not None
            ]
            head = " ".join(parts)
            if len(self._heads) < _MAX_HEADS:
                self._heads[key] = head
        return head

    def label(self, key: str) -> tuple[str, bool]:
        """A field's name as it is written, and whether its value is not."""
        label = self._labels.get(key)
        if label is None:
            is_taken = key in _OWN_FIELDS and not (key == "process" and self._process is None)
            label = (f"field_{key}=" if is_taken else f"{key}=", key.lower() in SECRET_FIELDS)
            if len(self._labels) < _MAX_HEADS:
                self._labels[key] = label
        return label

    def _date_of(self, second: int) -> str:
        """UTC in ISO 8601; made once a second."""
        date = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        self._date = (second, date)
        return date

    def _fields_of(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "ts": self.begin(record.created, "").removeprefix("ts=").removesuffix(" "),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": record.getMessage(),
        }
        if self._process is None:
            del fields["process"]
        extra = getattr(record, _FIELDS, None)
        for key, value in (extra if isinstance(extra, Mapping) else {}).items():
            if value is not None:
                fields[f"field_{key}" if key in fields else key] = _BLANKED if key.lower() in SECRET_FIELDS else value
        if record.exc_info:
            fields[_ERROR] = self.formatException(record.exc_info)[-_MAX_TRACEBACK_CHARS:]  # its end says what happened
        return fields


def configure_logging(
    *, level: str = "info", as_json: bool = False, process: str | None = None, stream: TextIO | None = None
) -> None:
    """Send all of the process's log lines to `stream` (standard error) in this form. Called once, by __main__."""
    handler = LineHandler(sys.stderr if stream is None else stream, LogFormatter(as_json=as_json, process=process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _quoted(value: Any, max_chars: int) -> str:
    if type(value) is str:
        text = value[:max_chars]
    elif isinstance(value, bool):
        return "true" if value else "false"
    elif isinstance(value, float):
        return f"{value:.6g}"
    elif type(value) is int:
        return str(value)
    else:
        text = str(value)[:max_chars]
    if text.isascii() and text.isalnum():
        return text
    if text.isprintable():
        if _PLAIN.fullmatch(text):
            return text
        if '"' not in text and "\\" not in text:
            return f'"{text}"'
    return json.dumps(text, ensure_ascii=False)


def _max_chars(key: str) -> int:
    return _MAX_TRACEBACK_CHARS if key == _ERROR else _MAX_VALUE_CHARS
