"""From a regular expression to one that matches every beginning of what it matches: what tells text that may go on to a match from text
that cannot.

    r = a(b|cd)+        P(r) = (?:a(?:(?:b|cd)*(?:(?:b)?|(?:c(?:d)?)?))?)?

    P(x) = x? for a single character         P(rs) = P(r) | r P(s)         P(r|s) = P(r) | P(s)         P(r{m,n}) = r{0,n-1} P(r)

Reads the syntax of RE2. What it does not know for sure it refuses, and its caller then holds text back by length alone.
"""

import re
from typing import NamedTuple

MAX_PREFIX_CHARS = 200_000
"""A longer expression is not made: its text is held back by length alone."""
_REPEAT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_GROUP = re.compile(r"\?(?:P?<[A-Za-z0-9_]+>|(?P<flags>[imsU]*(?:-[imsU]+)?):)")
_LEADING_FLAGS = re.compile(r"\(\?([imsU]+)\)")
_ESCAPE = re.compile(
    r"\\(?:[pP](?:\{\^?[A-Za-z_]+\}|[A-Z])|x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|0[0-7]{0,2}|[dDwWsSaftnrv]|[^\w\s])"
)
_ZERO_WIDTH = re.compile(r"\\[AzbB]")
_CLASS = re.compile(r"\[\^?\]?(?:\[:\^?[a-z]+:\]|\\(?:[pP]\{\^?[A-Za-z_]+\}|x\{[0-9A-Fa-f]+\}|.)|[^\]\\])*\]")


class _UnknownSyntaxError(ValueError):
    """Not understood for sure."""


class _Part(NamedTuple):
    whole: str
    """Without captures."""
    begun: str | None
    """What it may have begun with; None: nothing shorter than all of it (one character, or a place between two)."""
    is_empty: bool = False
    """Takes no text."""


def prefix_pattern(pattern: str) -> str | None:
    """Matches any beginning, the empty one and the whole included, of whatever `pattern` matches. None: it holds something unknown."""
    flags = _LEADING_FLAGS.match(pattern)
    try:
        part = _Reader(pattern[flags.end() :] if flags else pattern).read()
    except (_UnknownSyntaxError, RecursionError):
        return None
    begun = _beginnings([part])
    if len(begun) > MAX_PREFIX_CHARS:
        return None
    return f"(?{flags[1]}:{begun})" if flags else begun


def _beginnings(parts: list[_Part]) -> str:
    made = ""
    for part in reversed(parts):
        others = "" if part.begun is None else f"{part.begun}|"
        made = f"(?:{others}{part.whole}{made})?"
        if len(made) > MAX_PREFIX_CHARS:
            raise _UnknownSyntaxError
    return made


class _Reader:
    """Reads one expression from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> _Part:
        part = self._alternatives()
        if self._at < len(self._text):
            raise _UnknownSyntaxError
        return part

    def _alternatives(self) -> _Part:
        found = [self._sequence()]
        while self._text.startswith("|", self._at):
            self._at += 1
            found.append(self._sequence())
        whole = "|".join("".join(part.whole for part in parts) for parts in found)
        begun = "|".join(_beginnings(parts) for parts in found)
        return _Part(f"(?:{whole})", f"(?:{begun})", all(part.is_empty for parts in found for part in parts))

    def _sequence(self) -> list[_Part]:
        parts: list[_Part] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            if self._text.startswith("\\Q", self._at):
                parts += self._quoted()
            else:
                parts.append(self._repeated(self._atom()))
        return parts

    def _quoted(self) -> list[_Part]:
        end = self._text.find("\\E", self._at)
        if end < 0:
            raise _UnknownSyntaxError
        quoted, self._at = self._text[self._at + 2 : end], end + 2
        if self._at < len(self._text) and self._text[self._at] in "*+?{":
            raise _UnknownSyntaxError
        return [_Part(_literal(char), None) for char in quoted]

    def _atom(self) -> _Part:
        char = self._text[self._at]
        if char == "(":
            return self._group()
        if char in "^$":
            self._at += 1
            return _Part(char, None, is_empty=True)
        for kind in (_ZERO_WIDTH, _ESCAPE) if char == "\\" else (_CLASS,) if char == "[" else ():
            found = kind.match(self._text, self._at)
            if found is not None:
                self._at = found.end()
                return _Part(found[0], None, is_empty=kind is _ZERO_WIDTH)
        if char in "\\[*+?":
            raise _UnknownSyntaxError
        self._at += 1
        return _Part("." if char == "." else _literal(char), None)

    def _group(self) -> _Part:
        self._at += 1
        flags = ""
        if self._text.startswith("?", self._at):
            found = _GROUP.match(self._text, self._at)
            if found is None:
                raise _UnknownSyntaxError
            flags, self._at = found["flags"] or "", found.end()
        inner = self._alternatives()
        if not self._text.startswith(")", self._at):
            raise _UnknownSyntaxError
        self._at += 1
        if not flags:
            return inner
        return _Part(f"(?{flags}:{inner.whole})", f"(?{flags}:{inner.begun})", inner.is_empty)

    def _repeated(self, part: _Part) -> _Part:
        if self._at >= len(self._text):
            return part
        char, found = self._text[self._at], _REPEAT.match(self._text, self._at)
        if char in "*+?":
            most, written = (1 if char == "?" else None), char
        elif found is not None:
            most = int(found[1]) if found[2] is None else int(found[3]) if found[3] else None
            written = found[0]
        else:
            return part
        self._at += len(written)
        if self._text.startswith("?", self._at):
            written += "?"
            self._at += 1
        if self._text[self._at : self._at + 1] in ("*", "+") or _REPEAT.match(self._text, self._at):
            raise _UnknownSyntaxError
        if part.is_empty:
            return part if written[0] == "+" else _Part("", None, is_empty=True)
        earlier = "" if most is not None and most <= 1 else "*" if most is None else f"{{0,{most - 1}}}"
        begun = f"{part.whole}{earlier}{_beginnings([part])}" if earlier else _beginnings([part])
        return _Part(f"{part.whole}{written}", "" if most == 0 else begun)


def _literal(char: str) -> str:
    return char if char.isalnum() or ord(char) >= 128 else f"\\x{{{ord(char):x}}}"
