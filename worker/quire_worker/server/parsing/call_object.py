"""The object in which most formats write a call: `{"name": …, "arguments": {…}}`."""

from collections.abc import Collection
from typing import Literal

from quire_worker.server.parsing.feed import Feed, Step
from quire_worker.server.parsing.json_text import copy_value, object_in, read_string
from quire_worker.server.parsing.parts_sink import PartsSink

Outcome = Literal["done", "broken", "none"]
"""A call that is complete; one that began and broke; no call, nothing was told."""
_ARGUMENTS = ("arguments", "parameters")
_MAX_QUOTED_CHARS = 1 << 20


def arguments(feed: Feed, sink: PartsSink, name: str) -> Step[Outcome]:
    """The object that stands next, as the arguments of a call of `name`."""
    if (yield from feed.peek()) != "{":
        return "none"
    feed.forget()
    sink.begin(name)
    copied = yield from copy_value(feed, sink.arguments)
    if copied == "whole":
        sink.end()
        return "done"
    if copied == "cut":
        feed.drop()  # half a number or escape, which nobody can read
    return "broken"


def call_object(feed: Feed, sink: PartsSink, known: Collection[str] | None = None) -> Step[Outcome]:
    """The object that stands next, if it is a call: keys in any order, those it does not need passed over.

    With `known` it must name one of these functions and have arguments, because then nothing but its look says that it is a call.
    """
    return (yield from _CallObject(feed, sink, known).read())


class _CallObject:
    """One object on its way in. Told as soon as name and beginning arguments are known."""

    def __init__(self, feed: Feed, sink: PartsSink, known: Collection[str] | None) -> None:
        self._feed = feed
        self._sink = sink
        self._known = known
        self._name = ""
        self._early = ""
        """Arguments that came before the name."""
        self._outcome: Outcome = "none"

    def read(self) -> Step[Outcome]:
        feed = self._feed
        if not (yield from feed.literal("{")):
            return "none"
        goes_on = "{"
        while goes_on:
            yield from feed.spaces()
            key = yield from read_string(feed)
            if key is None or not (yield from self._colon()):
                return self._outcome
            if not (yield from self._member(key)):
                return self._outcome
            yield from feed.spaces()
            goes_on = yield from feed.literal(",")
        closed = yield from feed.literal("}")
        if closed and self._name and self._outcome == "none" and self._known is None:
            self._tell("{}")
        return self._outcome

    def _colon(self) -> Step[str]:
        yield from self._feed.spaces()
        found = yield from self._feed.literal(":")
        yield from self._feed.spaces()
        return found

    def _member(self, key: str) -> Step[bool]:
        """The value of `key`. False where the object is over or no call."""
        if key == "name" and not self._name:
            return (yield from self._take_name())
        if key in _ARGUMENTS and self._outcome == "none" and not self._early:
            return (yield from self._take_arguments())
        copied = yield from copy_value(self._feed, _ignore)
        if copied == "cut" and self._outcome == "done":
            self._feed.drop()
        return copied == "whole"

    def _take_name(self) -> Step[bool]:
        name = yield from read_string(self._feed)
        if not name or (self._known is not None and name not in self._known):
            return False
        self._name = name
        if self._early:
            self._tell(self._early)
        return True

    def _take_arguments(self) -> Step[bool]:
        if (yield from self._feed.literal("null")):
            return True
        if (yield from self._feed.peek()) == '"':
            return (yield from self._take_quoted())
        if self._name:
            self._outcome = yield from arguments(self._feed, self._sink, self._name)
            return self._outcome == "done"
        pieces: list[str] = []
        if (yield from self._feed.peek()) != "{" or (yield from copy_value(self._feed, pieces.append)) != "whole":
            return False
        self._early = "".join(pieces)
        return True

    def _take_quoted(self) -> Step[bool]:
        """Arguments that a model wrote as OpenAI's API shows them: an object's JSON in a string. They are told when they are whole."""
        text = yield from read_string(self._feed, _MAX_QUOTED_CHARS)
        found = None if text is None else object_in(text)
        if found is None:
            return False
        if self._name:
            self._tell(found)
        else:
            self._early = found
        return True

    def _tell(self, text: str) -> None:
        """A call whose arguments are known in one piece."""
        self._feed.forget()
        self._sink.begin(self._name)
        self._sink.arguments(text)
        self._sink.end()
        self._outcome = "done"


def _ignore(text: str) -> None:
    del text
