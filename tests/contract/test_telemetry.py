"""Log lines are one line each, can be parsed, and keep secrets out."""

import json
import logging

from quire_contract.telemetry import LogFormatter, Trouble, log_event


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
