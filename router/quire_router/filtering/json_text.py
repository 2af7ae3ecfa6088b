"""A text that is JSON on its way to a client: each of its strings is filtered as what it means, and stays a string.

    as it comes    {"to": "a\\u0040b.org", "n": 4111111111111111}
    filtered as    a@b.org                  between the strings: {  : , and so on
    as it goes on  {"to": "[redacted]", "n": "[redacted]"}

What stands outside of strings is filtered, too, so nothing escapes it in a text that is no JSON after all; what is put there is a string.
"""

import re
from collections.abc import Callable, Sequence

import msgspec

from quire_router.filtering.text_filter import Rule, TextFilter

_ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^u])")
_BEGUN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,4}(?:\\(?:u[0-9a-fA-F]{0,4})?)?)?")
_HIGH = ("d8", "d9", "da", "db")
_SIMPLE = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class JsonTextFilter:
    """The state of one text. As TextFilter."""

    def __init__(self, rules: Sequence[Rule], on_hit: Callable[[Rule], None]) -> None:
        quoted = [rule._replace(replacement=_quoted(rule.replacement)) for rule in rules]
        self._outside = TextFilter(quoted, on_hit)
        self._inside = TextFilter(rules, on_hit)
        self._in_string = False
        self._rest = ""

    @property
    def blocked_by(self) -> Rule | None:
        """Once this is set nothing more comes out."""
        return self._outside.blocked_by or self._inside.blocked_by

    def feed(self, piece: str) -> str:
        """What can go on now that `piece` has come."""
        return self._take(self._rest + piece, is_last=False)

    def end(self) -> str:
        """What is left."""
        out = self._take(self._rest, is_last=True)
        if self.blocked_by is None:
            out += _escaped(self._inside.end()) if self._in_string else self._outside.end()
        self._in_string = False
        return out

    def whole(self, text: str) -> str:
        """The same for a text that is all there."""
        return self.feed(text) + self.end()

    def _take(self, text: str, *, is_last: bool) -> str:
        out: list[str] = []
        self._rest, at = "", 0
        while at < len(text) and self.blocked_by is None:
            if not self._in_string:
                quote = text.find('"', at)
                end = len(text) if quote < 0 else quote
                out.append(self._outside.feed(text[at:end]))
                at = end
                if quote >= 0:
                    out.append(self._switched(self._outside.end(), in_string=True))
                    at += 1
                continue
            said, at, ended = _said(text, at, is_last=is_last)
            out.append(_escaped(self._inside.feed(said)))
            if ended:
                out.append(self._switched(_escaped(self._inside.end()), in_string=False))
            elif at < len(text):
                self._rest = text[at:]
                break
        return "".join(out)

    def _switched(self, left: str, *, in_string: bool) -> str:
        """What ends a string or what is between two, with the quote if it goes on."""
        self._in_string = in_string
        return left if self.blocked_by is not None else left + '"'


def _said(text: str, at: int, *, is_last: bool) -> tuple[str, int, bool]:
    """What the string says from `at` on, where that ends, and whether its closing quote is behind that. An escape may be incomplete."""
    said: list[str] = []
    while at < len(text):
        quote, slash = text.find('"', at), text.find("\\", at)
        end = min((place for place in (quote, slash) if place >= 0), default=len(text))
        said.append(text[at:end])
        at = end
        if at == len(text):
            break
        if text[at] == '"':
            return "".join(said), at + 1, True
        found = _ESCAPE.match(text, at)
        if not is_last and _BEGUN_ESCAPE.fullmatch(text, at) and (found is None or _is_half(found[0])):
            break
        said.append("\\" if found is None else _meant(found[0]))
        at = at + 1 if found is None else found.end()
    return "".join(said), at, False


def _is_half(escape: str) -> bool:
    """Whether the other half of a surrogate pair may follow."""
    return len(escape) == 6 and escape[2:4].lower() in _HIGH


def _meant(escape: str) -> str:
    if escape[1] != "u":
        return _SIMPLE.get(escape[1], escape[1])
    if len(escape) == 12:
        high, low = int(escape[2:6], 16), int(escape[8:], 16)
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    code = int(escape[2:], 16)
    return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _escaped(text: str) -> str:
    return _quoted(text)[1:-1]
