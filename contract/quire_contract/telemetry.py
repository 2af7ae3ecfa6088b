"""Log lines of every process: key=value, or JSON, one line each, with the same keys in the same order.

Fields never hold prompts, answers, headers or keys; fields so named are blanked, in case somebody tries.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
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
_REPEAT_S = 60.0
_OWN_FIELDS = ("ts", "level", "process", "logger", "event")
_MAX_HEADS = 512
"""Of events and of names of fields, which are the code's, those that are made once."""


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


class LogFormatter(logging.Formatter):
    """ts=... level=... logger=... event="..." key=value ..., or the same as a JSON object."""

    def __init__(self, *, as_json: bool = False, process: str | None = None) -> None:
        """`process` names the process in every line, such as "router"."""
        super().__init__()
        self._as_json = as_json
        self._process = process
        self._date = (-1, "")
        self._heads: dict[tuple[str, str, str], str] = {}
        self._labels: dict[str, tuple[str, bool]] = {}

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record holds."""
        if self._as_json:
            return json.dumps(self._fields_of(record), ensure_ascii=False, default=str)
        extra = getattr(record, _FIELDS, None)
        if record.exc_info is not None or not isinstance(extra, dict):
            return " ".join(
                f"{key}={_quoted(value, _max_chars(key))}" for key, value in self._fields_of(record).items()
            )
        parts = [f"ts={self._timestamp(record)}", self._head(record)]
        for key, value in extra.items():
            if value is None:
                continue
            label, is_secret = self._labels.get(key) or self._label(key)
            parts.append(label + (_quoted(_BLANKED if is_secret else value, _max_chars(key))))
        return " ".join(parts)

    def _head(self, record: logging.LogRecord) -> str:
        """What begins every line of one event, made once."""
        key = (record.levelname, record.name, record.getMessage())
        head = self._heads.get(key)
        if head is None:
            fields = {"level": key[0].lower(), "process": self._process, "logger": key[1], "event": key[2]}
            parts = [
                f"{name}={_quoted(value, _MAX_VALUE_CHARS)}" for name, value in fields.items() if value is not None
            ]
            head = " ".join(parts)
            if len(self._heads) < _MAX_HEADS:
                self._heads[key] = head
        return head

    def _label(self, key: str) -> tuple[str, bool]:
        """A field's name as it is written, and whether its value is not."""
        is_taken = key in _OWN_FIELDS and not (key == "process" and self._process is None)
        label = (f"field_{key}=" if is_taken else f"{key}=", key.lower() in SECRET_FIELDS)
        if len(self._labels) < _MAX_HEADS:
            self._labels[key] = label
        return label

    def _timestamp(self, record: logging.LogRecord) -> str:
        """UTC in ISO 8601 with milliseconds; the date is made once a second."""
        second = int(record.created)
        known, date = self._date
        if second != known:
            date = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._date = (second, date)
        return f"{date}.{int((record.created - second) * 1000):03d}+00:00"

    def _fields_of(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "ts": self._timestamp(record),
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
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(LogFormatter(as_json=as_json, process=process))
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
