"""Reads the tokens that an answer says were used, in the forms of all APIs; an estimate where it says nothing.

For workers that do not tell the router in a header or in comment lines. Looks only at events that have the word in them.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from quire_router.call import Usage

_MARK = b'"usage":'
"""Text of a model cannot hold these bytes: inside a JSON string the quotation marks are escaped."""
_MAX_KEPT_BYTES = 256 * 1024


class _Details(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: int | None = None


class _Used(msgspec.Struct, frozen=True, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Holder(msgspec.Struct, frozen=True, gc=False):
    usage: _Used | None = None


class _Said(msgspec.Struct, frozen=True, gc=False):
    """A body or an event: of chats, completions, embeddings and Anthropic's deltas; of responses; of the beginning of a message."""

    usage: _Used | None = None
    response: _Holder | None = None
    message: _Holder | None = None


_DECODER = msgspec.json.Decoder(_Said)


def usage_of_body(body: bytes) -> Usage | None:
    """Of a whole JSON answer; None if it does not say."""
    if _MARK not in body and b'"usage" :' not in body:
        return None
    return _read(body)


def body_reader(parts: Any) -> Callable[[bytes], Usage | None]:
    """`usage_of_body`; the usual kind of answer is read without making anything else of it. `parts`: the extension module."""
    if parts is None:
        return usage_of_body
    read = parts.chat_usage

    def usage(body: bytes) -> Usage | None:
        found = read(body)
        if found is None:
            return usage_of_body(body)
        prompt, cached, output = found
        return Usage(prompt=prompt, cached=cached, output=output)

    return usage


def num_events(part: bytes) -> int:
    """In a part of whole events, whose lines end as their worker ends lines."""
    return part.count(b"\n\n") + part.count(b"\r\n\r\n")


class StreamUsage:
    """Of a stream of events. Give it every part."""

    __slots__ = ("_first", "_last", "num_events")

    def __init__(self) -> None:
        self.num_events = 0
        self._first = b""
        self._last = b""

    def see(self, part: bytes) -> None:
        """Whole events."""
        self.num_events += num_events(part)
        if _MARK in part and len(part) <= _MAX_KEPT_BYTES:
            self._first = self._first or part
            self._last = part

    def usage(self) -> Usage | None:
        """What the events said, the last word on each number; None: they did not say."""
        said: Usage | None = None
        for part in (self._first, self._last):
            for line in part.split(b"\n"):
                if line.startswith(b"data:") and _MARK in line:
                    found = _read(line[5:])
                    said = found if said is None or found is None else _later(said, found)
        return said


def _later(before: Usage, after: Usage) -> Usage:
    return Usage(prompt=after.prompt or before.prompt, cached=after.cached or before.cached, output=after.output)


def _read(data: bytes) -> Usage | None:
    try:
        said = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    used = said.usage
    if used is None:
        holder = said.response or said.message
        used = None if holder is None else holder.usage
    return None if used is None else _usage(used)


def _usage(used: _Used) -> Usage:
    details = used.prompt_tokens_details or used.input_tokens_details
    apart = (used.cache_read_input_tokens or 0) + (
        used.cache_creation_input_tokens or 0
    )  # Anthropic's: beside input_tokens
    cached = (details.cached_tokens or 0) if details is not None else used.cache_read_input_tokens or 0
    prompt = used.prompt_tokens if used.prompt_tokens is not None else (used.input_tokens or 0) + apart
    output = used.completion_tokens if used.completion_tokens is not None else used.output_tokens or 0
    return Usage(prompt=max(0, prompt), cached=max(0, cached), output=max(0, output))
