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

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record holds."""
        fields = self._fields_of(record)
        if self._as_json:
            return json.dumps(fields, ensure_ascii=False, default=str)
        return " ".join(
            f"{key}={_quoted(value, _MAX_TRACEBACK_CHARS if key == _ERROR else _MAX_VALUE_CHARS)}"
            for key, value in fields.items()
        )

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
    if text.isprintable() and _PLAIN.fullmatch(text):
        return text
    return json.dumps(text, ensure_ascii=False)
