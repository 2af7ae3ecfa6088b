"""Text that arrives in pieces, read by coroutines as if it were all there.

A script reads with `yield from feed.…` and is suspended where the next decision needs characters that have not come. Every reading
operation below decides by the text alone, never by where it was cut, so a script's result does not depend on the pieces either: that is
what makes a stream equal to the answer in one go. Text is let through as soon as it cannot be the beginning of what is looked for.

    pieces ──> [ read and gone │ at ─> unread ]
                                       └── held: may become a marker, or half an escape

Knows no format. Time is linear in the text, because what stays unread between pieces is shorter than a marker.
"""

import functools
import re
from collections.abc import Collection, Generator
from typing import Protocol, TypeVar

T = TypeVar("T")
Step = Generator[None, None, T]
"""A script, or a part of one: yields where it waits for text, returns its finding."""

_SPACES = re.compile(r"[ \t\r\n]*")


class Feed:
    """The unread text, and a copy of what was read since `keep`."""

    def __init__(self, hidden: Collection[str] = ()) -> None:
        """`hidden` are markers that `kept` leaves out: special tokens that a client does not want to see."""
        self._hidden = frozenset(hidden)
        self._text = ""
        self._at = 0
        self._ended = False
        self._kept: list[str] | None = None

    def add(self, text: str) -> None:
        """The next piece."""
        self._text = self._text[self._at :] + text
        self._at = 0

    @property
    def num_unread(self) -> int:
        """Characters that wait for those behind them."""
        return len(self._text) - self._at

    def end(self) -> None:
        """No more will come."""
        self._ended = True

    def keep(self) -> None:
        """Remember what is read from here on, in case it turns out to be no call."""
        self._kept = []

    def drop(self) -> None:
        """Pass over what is unread."""
        self._at = len(self._text)

    def forget(self) -> None:
        """It is a call."""
        self._kept = None

    def kept(self) -> str:
        """What was read since `keep`; remembered no longer."""
        kept, self._kept = self._kept or [], None
        return "".join(kept)

    def more(self) -> Step[bool]:
        """Wait for more text than is unread now. False if none will come."""
        held = len(self._text) - self._at
        while len(self._text) - self._at == held:
            if self._ended:
                return False
            yield
        return True

    def peek(self) -> Step[str]:
        """The next character, which stays unread; "" at the end."""
        if self._at == len(self._text) and not (yield from self.more()):
            return ""
        return self._text[self._at]

    def spaces(self) -> Step[str]:
        """White space as JSON has it, all that comes."""
        found: list[str] = []
        while True:
            match = _SPACES.match(self._text, self._at)
            assert match is not None, "the pattern matches nothing, too"
            found.append(self._take(match.end()))
            if self._at < len(self._text) or not (yield from self.more()):
                return "".join(found)

    def literal(self, *options: str) -> Step[str]:
        """The first of `options` that stands next, read; "" if none does, and nothing is read."""
        while True:
            for option in options:
                if self._text.startswith(option, self._at):
                    if self._kept is not None and option not in self._hidden:
                        self._kept.append(option)
                    self._at += len(option)
                    return option
                if self._may_become(option):
                    break
            else:
                return ""
            if not (yield from self.more()):
                return (yield from self._shorter(options))

    def _shorter(self, options: tuple[str, ...]) -> Step[str]:
        """At the end of the text an option that was waited for will not come, a shorter one may stand there."""
        fitting = tuple(option for option in options if not self._may_become(option))
        return (yield from self.literal(*fitting)) if fitting else ""

    def _may_become(self, option: str) -> bool:
        num_unread = len(self._text) - self._at
        return num_unread < len(option) and option.startswith(self._text[self._at :])

    def run(self, *stops: str, at_most: int | None = None) -> Step[str]:
        """Some text up to the next of `stops`, as much as is certain; "" where one stands next, and at the end."""
        pattern = _any_of(stops)
        while True:
            match = pattern.search(self._text, self._at) if pattern is not None else None
            if match is not None:
                cut = match.start()
            else:
                cut = len(self._text) if self._ended else self._held_from(stops)
                if cut == self._at and not self._ended:
                    yield from self.more()
                    continue
            return self._take(cut if at_most is None else min(cut, self._at + at_most))

    def text_until(self, *stops: str, limit: int) -> Step[str | None]:
        """The text before the next of `stops`. None if more than `limit` characters, or the end, come before it."""
        found: list[str] = []
        room = limit + 1
        while text := (yield from self.run(*stops, at_most=room)):
            found.append(text)
            room -= len(text)
            if room == 0:
                return None
        return None if (yield from self.peek()) == "" else "".join(found)

    def consume(self, scan: "Scanner") -> Step[bool]:
        """Give the text to a scanner until it has enough. False if the text ends before that."""
        while True:
            self._take(scan.scan(self._text, self._at))
            if scan.is_over:
                return True
            if not (yield from self.more()):
                return False

    def _take(self, end: int) -> str:
        text = self._text[self._at : end]
        self._at = end
        if self._kept is not None and text:
            self._kept.append(text)
        return text

    def _held_from(self, stops: tuple[str, ...]) -> int:
        """Where the longest end of the unread text begins that is a proper beginning of a stop."""
        text, earliest = self._text, len(self._text)
        for stop in stops:
            index = text.find(stop[0], max(self._at, len(text) - len(stop) + 1))
            while 0 <= index < earliest:
                if stop.startswith(text[index:]):
                    earliest = index
                    break
                index = text.find(stop[0], index + 1)
        return earliest


class Scanner(Protocol):
    """What `Feed.consume` gives text to."""

    is_over: bool

    def scan(self, text: str, at: int) -> int:
        """Read from `at`; how far was read. What is read is never given again, the rest is, with more behind it."""
        ...


@functools.lru_cache(maxsize=64)
def _any_of(stops: tuple[str, ...]) -> re.Pattern[str] | None:
    """Finds the leftmost of several texts in one pass."""
    return re.compile("|".join(map(re.escape, stops))) if stops else None
