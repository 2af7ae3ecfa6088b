"""Lines that the extension writes are those of the Python that it stands for."""

import io
import logging
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quire_contract.telemetry import EventLine, LineHandler, LogFormatter
from quire_router.native.library import native

FIELDS = ("request_id", "model", "status", "why", "time_ms", "token", "error")
ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text("ab =\"\\\t'", max_size=9)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.just("x" * 2001) | st.builds(list)


def lines_of(rows, compiled):
    text = io.StringIO()
    handler = LineHandler(text, LogFormatter(process="router"))
    logger = logging.Logger("quire.test")
    logger.addHandler(handler)
    line = EventLine(logger, logging.INFO, "a request", FIELDS, lambda delay_s, work: None, compiled)
    for values in rows:
        line.log(*values)
    handler.flush()
    return re.sub("ts=[^ ]+ ", "", text.getvalue())


@given(st.lists(st.tuples(*[VALUES] * len(FIELDS)), max_size=3))
@example(
    [("a-1", "", 2**70, "\ud800", 1e300, "secret", "e" * 5000), ("", "a=b", -(2**63), 'a "b"', -0.0, None, "\x7f")]
)
def test_a_line_is_the_same_with_and_without_the_extension(rows):
    assert lines_of(rows, native().LineWriter) == lines_of(rows, None)


@given(st.integers(-10, 1_100_000), st.sampled_from([1, 10, 100, 1000]))
@example(0, 10)
@example(999_990, 10)
@example(999_989, 10)
@example(1, 100)
def test_a_number_is_written_the_same_with_and_without_the_extension(number, part):
    row = ("a", "m", 200, number / part, -number / part, None, None)

    assert lines_of([row], native().LineWriter) == lines_of([row], None)


def test_what_is_no_line_is_an_error():
    writer = native().LineWriter((("a=", False), ("b=", False)), lambda label, value, is_secret: 1 / value)

    assert writer.write("x", (True, None)) is None
    with pytest.raises(ZeroDivisionError):
        writer.write("x", (False, None))
    with pytest.raises(ValueError, match="as many values"):
        writer.write("x", (1,))
    with pytest.raises(TypeError):
        writer.write(b"x", (1, 2))
    with pytest.raises(ValueError, match="pairs"):
        native().LineWriter(("a=",), str)
