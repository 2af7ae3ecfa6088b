"""Log lines are one line each, can be parsed, and keep secrets out."""

import io
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_contract.telemetry import EventLine, LineHandler, LogFormatter, Trouble, log_event


def line_of(formatter: LogFormatter, event: str, /, **fields: object) -> str:
    """The line that one event becomes."""
    lines: list[str] = []

    class Sink(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(formatter.format(record))

    logger = logging.Logger("quire.test")
    logger.addHandler(Sink())
    log_event(logger, logging.INFO, event, **fields)
    return lines[0]


def test_fields_follow_as_key_and_value() -> None:
    line = line_of(
        LogFormatter(process="router"), "request finished", request_id="r1", num_tokens=5, time_s=0.25, streamed=True
    )

    tail = line.split(" ", 1)[1]
    assert line.startswith("ts=20")
    assert tail == (
        'level=info process=router logger=quire.test event="request finished" request_id=r1 num_tokens=5 time_s=0.25 streamed=true'
    )


def test_json_has_the_same_fields() -> None:
    line = line_of(LogFormatter(as_json=True), "started", port=8000, reason=None)

    fields = json.loads(line)
    assert fields | {"ts": ""} == {"ts": "", "level": "info", "logger": "quire.test", "event": "started", "port": 8000}


def test_a_value_cannot_start_a_new_line_or_field() -> None:
    line = line_of(LogFormatter(), "x", name='a"b c=d\nlevel=error', empty="")

    assert "\n" not in line
    assert line.endswith(r'name="a\"b c=d\nlevel=error" empty=""')


def test_secrets_and_prompts_are_blanked() -> None:
    line = line_of(LogFormatter(), "x", prompt="my secret", Authorization="Bearer k", api_key="k2", level="forged")

    assert "secret" not in line
    assert "Bearer" not in line
    assert "k2" not in line
    assert "level=info" in line
    assert "field_level=forged" in line


def test_a_traceback_stays_on_one_line() -> None:
    try:
        raise KeyError("boom")
    except KeyError as error:
        record = logging.LogRecord(
            "n", logging.ERROR, __file__, 1, "failed", (), (KeyError, error, error.__traceback__)
        )

    line = LogFormatter().format(record)

    assert "\n" not in line
    assert "boom" in line


def test_the_end_of_a_long_traceback_is_kept() -> None:
    def fail(depth: int) -> None:
        if depth == 0:
            raise KeyError("the reason")
        again(depth - 1)

    def again(depth: int) -> None:  # two functions: a traceback folds the calls of one
        fail(depth)

    record = logging.LogRecord("n", logging.ERROR, __file__, 1, "failed", (), None)
    try:
        fail(60)
    except KeyError as error:
        record.exc_info = (KeyError, error, error.__traceback__)

    lines = [LogFormatter().format(record), LogFormatter(as_json=True).format(record)]

    assert all("the reason" in line for line in lines)
    assert all(5_000 < len(line) < 20_000 for line in lines)


def test_a_line_carries_the_time_of_its_own_record() -> None:
    formatter = LogFormatter()
    times = [0.0, 0.25, 1.999, 86_399.5, 1.125]
    records = [logging.LogRecord("n", logging.INFO, __file__, 1, "x", (), None) for _ in times]
    for record, created in zip(records, times, strict=True):
        record.created = created

    stamps = [formatter.format(record).split(" ")[0] for record in records]

    assert stamps == [
        "ts=1970-01-01T00:00:00.000+00:00",
        "ts=1970-01-01T00:00:00.250+00:00",
        "ts=1970-01-01T00:00:01.999+00:00",
        "ts=1970-01-01T23:59:59.500+00:00",
        "ts=1970-01-01T00:00:01.125+00:00",
    ]


def test_trouble_that_goes_on_is_told_once_a_minute_and_when_it_changes() -> None:
    moments = iter((0.0, 5.0, 59.0, 60.0, 65.0, 66.0, 67.0, 68.0))
    trouble = Trouble(lambda: next(moments))

    same = [trouble.is_news("refused") for _ in range(5)]
    changed = [trouble.is_news("timeout") for _ in range(2)]
    over = [trouble.is_over(), trouble.is_over()]

    assert same == [True, False, False, True, False]
    assert changed == [True, False]
    assert over == [True, False]
    assert trouble.is_news("timeout")


class Process:
    """A logger whose lines go to a text, and what is to be called later."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.text = io.StringIO()
        self.handler = LineHandler(self.text, LogFormatter(as_json=as_json, process="router"))
        self.top = logging.Logger("top")
        self.top.addHandler(self.handler)
        self.logger = logging.Logger("quire.test")
        self.logger.parent = self.top
        self.later: list[tuple[float, Callable[[], object]]] = []
        fields = ("request_id", "model", "status", "why", "time_ms", "token")
        self.line = EventLine(
            self.logger, logging.INFO, "a request", fields, lambda delay_s, work: self.later.append((delay_s, work))
        )

    def lines(self) -> list[str]:
        """What was written, without the times."""
        return [re.sub('ts=[^ ]+ |"ts": "[^"]+", ', "", line) for line in self.text.getvalue().splitlines()]


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["plain", "a b", 'a"b='])


@given(st.tuples(*[VALUES] * 6), st.booleans())
def test_a_prepared_line_is_the_one_that_a_record_becomes(values: tuple[Any, ...], as_json: bool) -> None:
    prepared, usual = Process(as_json=as_json), Process(as_json=as_json)
    names = ("request_id", "model", "status", "why", "time_ms", "token")

    prepared.line.log(*values)
    log_event(usual.logger, logging.INFO, "a request", **dict(zip(names, values, strict=True)))
    prepared.handler.flush()

    assert prepared.lines() == usual.lines()


def test_prepared_lines_are_written_together_and_before_any_later_line() -> None:
    process = Process()

    process.line.log("r1", "m", 200, None, 1.5, None)
    process.line.log("r2", "m", 200, None, 1.5, None)
    at_first = process.lines()
    log_event(process.logger, logging.WARNING, "trouble")
    then = process.lines()
    process.line.log("r3", "m", 200, None, 1.5, None)
    for _, work in process.later:
        work()

    assert at_first == []
    assert [re.findall("r[0-9]|trouble", line) for line in then] == [["r1"], ["r2"], ["trouble"]]
    assert "request_id=r3" in process.lines()[3]
    assert [delay_s for delay_s, _ in process.later] == [0.05, 0.05]


def test_many_prepared_lines_do_not_wait_for_their_time() -> None:
    process = Process()

    for number in range(300):
        process.line.log(f"r{number}", "m", 200, None, 1.5, None)

    assert len(process.lines()) == 256


def test_a_prepared_line_goes_wherever_records_go(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()
    logger = logging.getLogger("quire.test.prepared")
    line = EventLine(logger, logging.INFO, "happened", ("number",), lambda delay_s, work: None)

    with caplog.at_level(logging.INFO):
        line.log(7)
    with caplog.at_level(logging.WARNING):
        line.log(8)
    process.top.addHandler(caplog.handler)
    process.line.log("r1", "m", 200, None, 1.5, None)

    told = [LogFormatter().format(record).partition("event=")[2] for record in caplog.records]
    assert told == ["happened number=7", '"a request" request_id=r1 model=m status=200 time_ms=1.5']
    assert "request_id=r1" in process.lines()[0]


class Interrupted(list[Any]):
    """Held lines; what another thread does comes right after somebody has looked at them all."""

    between: Callable[[], object] | None = None

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        between, self.between = self.between, None
        if between is not None:
            between()
        return found


def test_a_line_that_comes_while_another_thread_writes_is_not_left_behind() -> None:
    process = Process()
    held = process.handler.batch = Interrupted()
    process.line.log("r1", "m", 200, None, 1.5, None)

    held.between = lambda: process.line.log("r2", "m", 200, None, 1.5, None)
    process.handler.flush()

    assert [line.split()[-4] for line in process.lines()] == ["request_id=r1", "request_id=r2"]


def test_lines_for_a_reader_who_has_gone_are_no_error() -> None:
    process = Process()
    process.text.close()

    process.line.log("r1", "m", 200, None, 1.5, None)
    for _, work in process.later:
        work()

    assert process.text.closed
