"""Remembers how conversations of one shape are written (`chat_trace`), for the templates of one model.

A shape is all that a rendering depends on beside the contents of messages and the date: the template, the roles, flags and arguments. Only
plain messages have one: role and content, no tools. Shapes are no secrets: they are shared by all whose conversations have them.

Bounded: a full memory is emptied. Used from several threads.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from quire_contract.chat_trace import TemplateTracer, Trace

MAX_MESSAGES = 256
"""Longer conversations are Jinja2's."""
MAX_MEMORY_CHARS = 8 * 1024 * 1024
"""Of all shapes together, about."""
SHAPE_CHARS = 500
"""A shape without its traces and messages."""
MAX_TRACES = 8
"""Of one shape, by what the contents are like."""
FIRST_ATTEMPTS = 256
HITS_FOR_ATTEMPT = 4
"""A trace costs twice a rendering: no more are tried than are used."""
MAX_ARGUMENTS = 16
MAX_ARGUMENT_CHARS = 64
"""Of an argument's name, and of its value."""
ARGUMENT_CHARS = 400
"""An argument in a shape."""
_PLAIN = ("role", "content")

Shape = tuple[Any, ...]


def shape_of(
    name: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, kwargs: Mapping[str, Any]
) -> Shape | None:
    """Equal only for conversations that are rendered alike. None: it has none."""
    if len(messages) > MAX_MESSAGES:
        return None
    roles = []
    for message in messages:
        if tuple(message) != _PLAIN or type(message["content"]) is not str:
            return None
        roles.append(message["role"])
    if not kwargs:
        return name, add_generation_prompt, *roles
    if len(kwargs) > MAX_ARGUMENTS or not all(_is_plain(key) and _is_plain(value) for key, value in kwargs.items()):
        return None
    return name, add_generation_prompt, *roles, tuple((key, type(value), value) for key, value in kwargs.items())


def _is_plain(value: object) -> bool:
    return value is None or type(value) is bool or (type(value) is str and len(value) <= MAX_ARGUMENT_CHARS)


class ShapeMemory:
    """Traces by shape."""

    def __init__(self, sources: Mapping[str, str], now: Callable[[], datetime]) -> None:
        """`sources` by name; all compile. `now` as the templates have it."""
        self._tracer = TemplateTracer(sources, now)
        self._now = now
        self.traces: dict[Shape, list[Trace]] = {}
        """Of each shape those that hold for some contents, the oldest first; of one that came once, none."""
        self._size_chars = 0
        self.num_hits = 0
        """How often one of them said what is written; counted by whoever else looks into `traces` as well."""
        self._num_attempts = 0
        self._lock = threading.Lock()

    @property
    def size_chars(self) -> int:
        """Memory that the shapes take, about."""
        return self._size_chars

    def pieces(self, shape: Shape, contents: Sequence[str]) -> list[str] | None:
        """What is written: literals at even places, contents between them. None: it is not known."""
        trace = self._find(shape, contents)
        if trace is None:
            return None
        self.num_hits += 1
        return trace.fill(contents)

    def _find(self, shape: Shape, contents: Sequence[str]) -> Trace | None:
        for trace in self.traces.get(shape, ()):
            if trace.holds(contents, self._now):
                return trace
        return None

    def learn(
        self,
        shape: Shape,
        messages: Sequence[Mapping[str, Any]],
        values: Mapping[str, Any],
        contents: Sequence[str],
        text: str,
    ) -> None:
        """A conversation was rendered as `text`, from `messages` and the other `values`: the second time, how is found out."""
        with self._lock:
            traces = self.traces.get(shape)
            if traces is None:
                num_arguments = len(shape[-1]) if type(shape[-1]) is tuple else 0
                self._add(shape, None, SHAPE_CHARS + 8 * len(contents) + ARGUMENT_CHARS * num_arguments)
                return
            if self._num_attempts > FIRST_ATTEMPTS + self.num_hits // HITS_FOR_ATTEMPT:
                return
            if any(trace.holds(contents, self._now) for trace in traces):  # how is known: by Jinja2
                return
            self._num_attempts += 1
            trace = self._tracer.trace(shape[0], messages, values, contents)
            pieces = trace.fill(contents)
            if pieces is not None and "".join(pieces) != text:  # a fault, or midnight: it will be tried again
                return
            self._add(shape, trace, trace.size_chars)

    def _add(self, shape: Shape, trace: Trace | None, size_chars: int) -> None:
        if self._size_chars + size_chars > MAX_MEMORY_CHARS:
            self.traces, self._size_chars = {}, 0
        traces = self.traces.get(shape, [])
        kept = traces[1 - MAX_TRACES :] if len(traces) >= MAX_TRACES else traces
        self._size_chars += size_chars - sum(old.size_chars for old in traces[: len(traces) - len(kept)])
        self.traces[shape] = kept if trace is None else [*kept, trace]
