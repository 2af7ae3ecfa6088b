"""A word list as one expression: whole words, in any case, in any script.

A word's ends are letters, digits, marks or underscores with something else, or nothing, beside them. An entry that begins or ends with
another character (such as "c++") needs nothing beside it on that side. Between an entry's words any white space may stand.
"""

import unicodedata
from collections.abc import Iterable

import re2

from quire_router.filtering.finder import Finder

_WORD = r"\pL\pN\pM_"
_BEFORE = rf"(?:\A|[^{_WORD}])"
_AFTER = rf"(?:[^{_WORD}]|\z)"
_PER_FINDER = 5000
"""Entries of one expression: RE2 bounds a program's size."""
_SPACE_BYTES = 16
"""White space between two words that is still looked through."""


def word_finders(words: Iterable[str]) -> list[Finder]:
    """Finders for all of them; few, whatever their number."""
    entries = sorted({" ".join(unicodedata.normalize("NFC", word).split()) for word in words} - {""})
    by_ends: dict[tuple[bool, bool], list[str]] = {}
    for entry in entries:
        by_ends.setdefault((_is_of_word(entry[0]), _is_of_word(entry[-1])), []).append(entry)
    return [
        _finder(some[start : start + _PER_FINDER], *ends)
        for ends, some in by_ends.items()
        for start in range(0, len(some), _PER_FINDER)
    ]


def _finder(entries: list[str], needs_before: bool, needs_after: bool) -> Finder:
    longest = max(len(entry.encode()) + _SPACE_BYTES * entry.count(" ") for entry in entries)
    # the longer entry first: "bad word" is meant whole where "bad" is an entry, too
    either = "|".join(_pattern(entry) for entry in sorted(entries, key=len, reverse=True))
    pattern = f"(?i){_BEFORE if needs_before else ''}({either}){_AFTER if needs_after else ''}"
    return Finder(
        pattern, max_bytes=2 * longest + 8, core=1, has_lead=needs_before, hold=_Beginnings(entries, needs_before).hold
    )


class _Beginnings:
    """All that entries begin with. A set of them tells faster than an expression, of which each place could be the last one."""

    def __init__(self, entries: list[str], needs_before: bool) -> None:
        folded = [entry.casefold() for entry in entries]
        self._known = frozenset(entry[:length] for entry in folded for length in range(1, len(entry) + 1))
        self._needs_before = needs_before

    def hold(self, end: bytes) -> int:
        """Where an entry may have begun."""
        text = end.decode(errors="replace")
        for place, char in enumerate(text):
            if self._needs_before and not (_is_of_word(char) and (place == 0 or not _is_of_word(text[place - 1]))):
                continue
            if " ".join(text[place:].casefold().split()) in self._known:
                return len(text[:place].encode()) if len(end) == len(text.encode()) else 0
        return len(end)


def _pattern(entry: str) -> str:
    return r"\s{1,16}".join(re2.escape(word) for word in entry.split(" "))


def _is_of_word(char: str) -> bool:
    return char == "_" or unicodedata.category(char)[0] in "LNM"
