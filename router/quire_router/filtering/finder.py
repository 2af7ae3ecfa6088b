"""Finds what one expression matches in a text that may still be growing.

What is found depends on the text alone, never on how it arrived: a match that begins at a place is the one that the expression prefers
among those of at most `max_bytes`, and a place is decided as soon as no more text could change that.

    text so far      ....................|.........|
                     decided             ^ limit: from here on the text may be the beginning of a match

Positions and lengths are bytes of UTF-8: RE2 reads those, and so nothing has to be counted again.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import re2

from quire_router.filtering.prefixes import prefix_pattern

Accept = Callable[[bytes], int]
"""How many of a match's bytes are meant, from its beginning; 0: none, it only looks like one."""
Text = bytes | bytearray
Hold = Callable[[bytes], int]
"""The first place in the end of a text that may be the beginning of a match; its length: there is none."""
MAX_PROGRAM_BYTES = 16 * 1024 * 1024
"""Memory of one compiled expression with its cached states."""


class PatternError(ValueError):
    """RE2 refuses an expression; the message says why."""


class Span(NamedTuple):
    """Where something was found."""

    start: int
    end: int


class Finder:
    """One compiled expression. Shared by all calls."""

    __slots__ = ("_accept", "_core", "_first", "_has_lead", "_hold", "_program", "max_bytes")

    def __init__(
        self,
        pattern: str,
        *,
        max_bytes: int,
        core: int = 0,
        has_lead: bool = False,
        accept: Accept | None = None,
        hold: Hold | None = None,
        first: "re.Pattern[bytes] | None" = None,
    ) -> None:
        """`core`: the group that is meant, if what is around it is only looked at; `has_lead`: one character before it; `first`: a byte
        that what is meant begins with, to be done quickly with text that has none. PatternError."""
        self._program = compiled(pattern)
        self._core = core
        self._has_lead = has_lead
        self._accept = accept
        self.max_bytes = max_bytes
        self._hold = hold or _hold_of(pattern)
        self._first = first

    def may_occur(self, text: Text) -> bool:
        """Whether there is a match of any length; one that only looks like it counts, too. Linear in the text's length."""
        return self._program.search(text) is not None

    def decided(self, text: Text, pos: int) -> int:
        """The places from `pos` up to the one returned are decided, whatever text follows."""
        if self._first is not None and self._first.search(text, pos) is None:
            return len(text)
        sure = max(pos, len(text) - self.max_bytes)
        if sure > pos and text[sure] & 0xC0 == 0x80:
            sure = max(pos, _char_before(text, sure))
        return sure if self._hold is None else sure + self._hold(bytes(text[sure:]))

    def find(self, text: Text, pos: int, limit: int) -> Span | None:
        """The first match that begins at `pos` or later and before `limit`, up to which places are decided."""
        if self._first is not None and self._first.search(text, pos, limit) is None:
            return None
        begin = _char_before(text, pos) if self._has_lead else pos
        end = min(len(text), limit + self.max_bytes)
        while begin < limit:
            found = self._program.search(text, begin, end)
            if found is None or found.start(self._core) >= limit:
                return None
            whole_start, whole_end = found.span()
            if whole_end - whole_start > self.max_bytes:
                found = self._program.match(text, whole_start, whole_start + self.max_bytes)
            begin = whole_start + 1
            if found is None:
                continue
            start, stop = found.span(self._core)
            if self._accept is not None:
                stop = start + self._accept(bytes(text[start:stop]))
            if start >= pos and stop > start:
                return Span(start, stop)
        return None


def _hold_of(pattern: str) -> Hold | None:
    begun = prefix_pattern(pattern)
    if begun is None:
        return None
    try:
        program = compiled(rf"(?:{begun})\z")
    except PatternError:  # the expression is fine, its beginnings are too many
        return None

    def hold(end: bytes) -> int:
        found = program.search(end)
        return len(end) if found is None else int(found.start())

    return hold


def compiled(pattern: str) -> "re2._Regexp":
    """PatternError if RE2 refuses it."""
    options = re2.Options()
    options.max_mem = MAX_PROGRAM_BYTES
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        problem = error.args[0] if error.args else "is refused"
        raise PatternError(problem.decode(errors="replace") if isinstance(problem, bytes) else str(problem)) from None


def _char_before(text: Text, pos: int) -> int:
    pos -= 1
    while pos > 0 and text[pos] & 0xC0 == 0x80:
        pos -= 1
    return max(pos, 0)
