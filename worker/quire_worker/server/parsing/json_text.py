"""Checks JSON as it comes and passes it on: what is let out, put together, is valid JSON text if the value ends.

Never lets out half an escape, half a number or half a word. Mends what models get wrong inside strings: raw control characters, unknown
escapes (`\\d`), halves of surrogate pairs. Anything else that is no JSON breaks the value at that character.
"""

import re
from collections.abc import Callable
from typing import Literal

import msgspec

from quire_worker.server.parsing.feed import Feed, Step

MAX_DEPTH = 128
"""Levels of nesting; deeper counts as broken."""
MAX_ATOM_CHARS = 512
"""Characters of a number."""
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SPACES = re.compile(r"[ \t\r\n]+")
_ATOM_CHARS = re.compile(r"[-+.0-9A-Za-z]+")
_ATOM = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_UNICODE = re.compile(r"\\u[0-9a-fA-F]{4}")
_UNICODE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_NOTHING = "\\ufffd"
"""For half of a surrogate pair."""

Copied = Literal["whole", "broken", "cut"]
_VALUE, _FIRST_ITEM, _FIRST_KEY, _KEY, _COLON, _NEXT, _STRING, _OVER = range(8)


class JsonScanner:
    """One value, from its first character to its last. Feed it text that begins where the value does."""

    def __init__(self) -> None:
        self._state = _VALUE
        self._open: list[str] = []
        """The brackets that will close what is open, innermost last."""
        self._string_is_key = False
        self._out: list[str] = []
        self.is_over = False
        self.is_broken = False
        self._steps: dict[int, Callable[[str, int], int | None]] = {
            _VALUE: self._value,
            _FIRST_ITEM: self._first_item,
            _FIRST_KEY: self._first_key,
            _KEY: self._key,
            _COLON: self._colon,
            _NEXT: self._next,
            _STRING: self._string,
        }

    def scan(self, text: str, at: int) -> int:
        while at < len(text) and not self.is_over:
            if self._state != _STRING and (spaces := _SPACES.match(text, at)):
                at = self._pass(text, at, spaces.end())
                continue
            reached = self._steps[self._state](text, at)
            if reached is None:
                break
            at = reached
        return at

    def take(self) -> str:
        """What was let out since the last time."""
        text = "".join(self._out)
        self._out.clear()
        return text

    def _pass(self, text: str, at: int, end: int, state: int | None = None) -> int:
        self._out.append(text[at:end])
        if state is not None:
            self._state = state
            self.is_over = state == _OVER
        return end

    def _break(self) -> int | None:
        self.is_broken = self.is_over = True
        return None

    def _closed(self) -> int:
        """The state behind a value."""
        return _NEXT if self._open else _OVER

    def _value(self, text: str, at: int) -> int | None:
        char = text[at]
        if char in "{[":
            if len(self._open) >= MAX_DEPTH:
                return self._break()
            self._open.append("}" if char == "{" else "]")
            return self._pass(text, at, at + 1, _FIRST_KEY if char == "{" else _FIRST_ITEM)
        if char == '"':
            self._string_is_key = False
            return self._pass(text, at, at + 1, _STRING)
        return self._atom(text, at)

    def _atom(self, text: str, at: int) -> int | None:
        found = _ATOM_CHARS.match(text, at)
        end = at if found is None else found.end()
        if end == len(text) and end - at <= MAX_ATOM_CHARS:
            return None  # it may go on
        if end - at > MAX_ATOM_CHARS or not _ATOM.fullmatch(text, at, end):
            return self._break()
        return self._pass(text, at, end, self._closed())

    def _first_item(self, text: str, at: int) -> int | None:
        return self._close(text, at) if text[at] == "]" else self._value(text, at)

    def _first_key(self, text: str, at: int) -> int | None:
        return self._close(text, at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> int | None:
        if text[at] != '"':
            return self._break()
        self._string_is_key = True
        return self._pass(text, at, at + 1, _STRING)

    def _colon(self, text: str, at: int) -> int | None:
        return self._pass(text, at, at + 1, _VALUE) if text[at] == ":" else self._break()

    def _next(self, text: str, at: int) -> int | None:
        if text[at] == ",":
            return self._pass(text, at, at + 1, _KEY if self._open[-1] == "}" else _VALUE)
        return self._close(text, at) if text[at] == self._open[-1] else self._break()

    def _close(self, text: str, at: int) -> int:
        self._open.pop()
        return self._pass(text, at, at + 1, self._closed())

    def _string(self, text: str, at: int) -> int | None:
        plain = _PLAIN.match(text, at)
        if plain is not None:
            return self._pass(text, at, plain.end())
        if text[at] == '"':
            return self._pass(text, at, at + 1, _COLON if self._string_is_key else self._closed())
        if text[at] == "\\":
            return self._escape(text, at)
        self._out.append(escaped(text[at]))
        return at + 1

    def _escape(self, text: str, at: int) -> int | None:
        second = text[at + 1 : at + 2]
        if second == "u":
            return self._unicode(text, at)
        if not second:
            return None
        if second in '"\\/bfnrt':
            return self._pass(text, at, at + 2)
        self._out.append("\\\\")  # the backslash itself is meant, as in "\d"
        return at + 1

    def _unicode(self, text: str, at: int) -> int | None:
        if not _UNICODE.match(text, at):
            if _UNICODE_BEGUN.fullmatch(text, at):
                return None
            self._out.append("\\\\")
            return at + 1
        code = int(text[at + 2 : at + 6], 16)
        if not 0xD800 <= code < 0xE000:
            return self._pass(text, at, at + 6)
        pair = self._pair(text, at, code)
        if pair is None:
            return None
        self._out.append(text[at : at + 12] if pair else _NOTHING)
        return at + (12 if pair else 6)

    def _pair(self, text: str, at: int, code: int) -> bool | None:
        """Whether the escape at `at` and the one behind it are a surrogate pair; None while that is open."""
        if code >= 0xDC00:
            return False
        if _UNICODE.match(text, at + 6):
            return 0xDC00 <= int(text[at + 8 : at + 12], 16) < 0xE000
        return None if at + 6 == len(text) or _UNICODE_BEGUN.fullmatch(text, at + 6) else False


class _PassingOn:
    """Hands on what a JsonScanner lets out, piece by piece."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self.json = JsonScanner()
        self.is_over = False
        self._emit = emit

    def scan(self, text: str, at: int) -> int:
        at = self.json.scan(text, at)
        if out := self.json.take():
            self._emit(out)
        self.is_over = self.json.is_over
        return at


def copy_value(feed: Feed, emit: Callable[[str], None]) -> Step[Copied]:
    """Pass one JSON value on, as it comes: to its end, to where it breaks, or to where the text ends."""
    passing = _PassingOn(emit)
    if not (yield from feed.consume(passing)):
        return "cut"
    return "broken" if passing.json.is_broken else "whole"


def read_string(feed: Feed, max_chars: int = 256) -> Step[str | None]:
    """A JSON string's text. None if none stands next, or it breaks, ends early or is longer than `max_chars` as JSON."""
    if (yield from feed.peek()) != '"':
        return None
    bounded = _Bounded(max_chars)
    if not (yield from feed.consume(bounded)):
        return None
    return bounded.text


class _Bounded:
    """Gathers a JSON string up to a length, which does not depend on how the text is cut."""

    def __init__(self, max_chars: int) -> None:
        self._json = JsonScanner()
        self._pieces: list[str] = []
        self._room = max_chars
        self.is_over = False

    @property
    def text(self) -> str | None:
        """The string, if it was one."""
        if self._json.is_broken or not self._json.is_over:
            return None
        return msgspec.json.decode("".join(self._pieces), type=str)

    def scan(self, text: str, at: int) -> int:
        visible = text[: at + self._room]
        reached = self._json.scan(visible, at)
        self._pieces.append(self._json.take())
        self._room -= reached - at
        self.is_over = self._json.is_over or len(visible) < len(text)
        return reached


def object_in(text: str) -> str | None:
    """The JSON object that a text is, mended as above; None if it is anything else."""
    scanner = JsonScanner()
    bare = text.strip()
    if not bare.startswith("{") or scanner.scan(bare, 0) < len(bare) or not scanner.is_over or scanner.is_broken:
        return None
    return scanner.take()


def escaped(text: str) -> str:
    """Text as it stands inside a JSON string."""
    return msgspec.json.encode(text).decode()[1:-1]
