"""Runs a script over a message's text: the parser that answers use."""

import dataclasses
from collections.abc import Callable, Sequence

from quire_worker.server.parsing.feed import Feed, Step
from quire_worker.server.parsing.parts_sink import PartsSink
from quire_worker.server.parts import Part

Script = Callable[[Feed, PartsSink], Step[None]]


class ScriptParser:
    """One message; a `MessageParser`."""

    def __init__(self, script: Script, feed: Feed, sink: PartsSink) -> None:
        """`script` reads `feed` to its end and tells `sink` what it finds."""
        self._feed = feed
        self._sink = sink
        self._running: Step[None] | None = script(feed, sink)

    def push(self, text: str) -> Sequence[Part]:
        self._feed.add(text)
        self._run()
        return self._sink.take()

    def finish(self) -> Sequence[Part]:
        self._feed.end()
        self._run()
        self._sink.finish()
        return self._sink.take()

    def _run(self) -> None:
        """Until the script waits for text. At the end of the text it waits for nothing."""
        if self._running is not None and next(self._running, _ENDED) is _ENDED:
            self._running = None

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends inside reasoning."""
        return self._sink.is_reasoning

    @property
    def num_calls(self) -> int:
        """Calls begun so far."""
        return self._sink.num_calls

    @property
    def calls_are_whole(self) -> bool:
        """There are calls, and the arguments of each are complete."""
        return self._sink.num_calls > 0 and self._sink.num_unfinished == 0


_ENDED = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Steps:
    """A script made of two: one begins where the other ends."""

    first: Script
    then: Script

    def __call__(self, feed: Feed, sink: PartsSink) -> Step[None]:
        yield from self.first(feed, sink)
        yield from self.then(feed, sink)
