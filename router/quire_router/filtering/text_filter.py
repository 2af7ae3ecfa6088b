"""One text on its way to a client, cut into pieces anywhere: what may be part of a match is held until that is known, the rest goes on.

Every rule looks at the original text: what one of them hides, another still sees. Where redactions overlap, one replacement stands for all.

    for any text and any way to cut it:  "".join(feed(piece) for each piece) + end()  is the same
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from quire_router.filtering.finder import Finder

Action = Literal["block", "redact", "flag"]
_SLICE_CHARS = 2048
"""Longer pieces are looked through in steps, so that no search runs over more than this and a match's length."""
_CONTEXT_BYTES = 8
"""Kept of what is done with: expressions look at the character before a match."""


class Rule(NamedTuple):
    """What one filter looks for, and what is done about it."""

    name: str
    action: Action
    finders: tuple[Finder, ...]
    replacement: str = ""


class _Hit(NamedTuple):
    start: int
    order: int
    end: int
    rule: Rule


class TextFilter:
    """The state of one text."""

    __slots__ = ("_finders", "_next", "_on_hit", "_sent", "_text", "blocked_by")

    def __init__(self, rules: Sequence[Rule], on_hit: Callable[[Rule], None]) -> None:
        """`on_hit` is called for each match."""
        self._finders = [(finder, rule) for rule in rules for finder in rule.finders]
        self._on_hit = on_hit
        self._text = bytearray()
        self._next = [0] * len(self._finders)
        self._sent = 0
        self.blocked_by: Rule | None = None
        """Once this is set nothing more comes out."""

    def feed(self, piece: str) -> str:
        """What can go on now that `piece` has come."""
        if len(piece) <= _SLICE_CHARS:
            return self._take(piece, is_last=False)
        starts = range(0, len(piece), _SLICE_CHARS)
        return "".join(self._take(piece[start : start + _SLICE_CHARS], is_last=False) for start in starts)

    def end(self) -> str:
        """What is left. The next piece begins a new text."""
        rest = self._take("", is_last=True)
        self._text.clear()
        self._next = [0] * len(self._finders)
        self._sent = 0
        return rest

    def whole(self, text: str) -> str:
        """The same for a text that is all there."""
        return self.feed(text) + self.end()

    def _take(self, piece: str, *, is_last: bool) -> str:
        if self.blocked_by is not None:
            return ""
        text = self._text
        text += piece.encode()
        limit = len(text)
        if not is_last:
            for (finder, _), pos in zip(self._finders, self._next, strict=True):
                limit = min(limit, finder.decided(text, min(pos, len(text))))
        hits = self._hits(limit)
        out = self._written(hits, limit)
        self._forget()
        return out

    def _hits(self, limit: int) -> list[_Hit]:
        """All matches that begin before `limit` and have not been seen."""
        hits: list[_Hit] = []
        for i, (finder, rule) in enumerate(self._finders):
            pos = self._next[i]
            while pos < limit and (found := finder.find(self._text, pos, limit)) is not None:
                hits.append(_Hit(found.start, i, found.end, rule))
                pos = found.end
            self._next[i] = max(pos, limit)
        hits.sort()
        return hits

    def _written(self, hits: Sequence[_Hit], limit: int) -> str:
        out: list[bytes] = []
        for hit in hits:
            if hit.rule.action == "block":
                limit, self.blocked_by = hit.start, hit.rule
                self._on_hit(hit.rule)
                break
            self._on_hit(hit.rule)
            if hit.rule.action == "flag":
                continue
            if hit.start >= self._sent:
                out += (bytes(self._text[self._sent : hit.start]), hit.rule.replacement.encode())
            self._sent = max(self._sent, hit.end)
        if self._sent < limit:
            out.append(bytes(self._text[self._sent : limit]))
            self._sent = limit
        return b"".join(out).decode(errors="replace")

    def _forget(self) -> None:
        done = min(self._sent, *self._next) - _CONTEXT_BYTES
        if done <= 0:
            return
        del self._text[:done]
        self._sent -= done
        self._next = [pos - done for pos in self._next]
