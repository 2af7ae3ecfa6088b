"""Whether an answer is whole and came to a proper end, so that it may be given again. Knows the forms of all APIs; keeps no text.

An answer that was cut by an error, by a filter or by its worker's end is nobody else's; one that reached its length is what its request
asked for.
"""

from typing import Any

import msgspec

from quire_contract import names
from quire_contract.routing import PATHS_WITH_PROMPT

_REASONS = frozenset({"stop", "length", "tool_calls", "function_call", "repetition"})
_STOP_REASONS = frozenset({"end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"})
_DONE = b"[DONE]"


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    finish_reason: str | None = None


class _Choices(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    error: Any = None


class _Details(msgspec.Struct, frozen=True):
    reason: str | None = None


class _Response(msgspec.Struct, frozen=True):
    status: str | None = None
    incomplete_details: _Details | None = None
    error: Any = None


class _Message(msgspec.Struct, frozen=True):
    type: str = ""
    stop_reason: str | None = None


class _Typed(msgspec.Struct, frozen=True):
    type: str = ""


class _ResponseEvent(msgspec.Struct, frozen=True):
    response: _Response


class _MessageDelta(msgspec.Struct, frozen=True):
    delta: _Message


class _Any(msgspec.Struct, frozen=True):
    error: Any = None


_CHOICES = msgspec.json.Decoder(_Choices)
_RESPONSE = msgspec.json.Decoder(_Response)
_MESSAGE = msgspec.json.Decoder(_Message)
_TYPED = msgspec.json.Decoder(_Typed)
_RESPONSE_EVENT = msgspec.json.Decoder(_ResponseEvent)
_MESSAGE_DELTA = msgspec.json.Decoder(_MessageDelta)
_ANY = msgspec.json.Decoder(_Any)


def is_proper(path: str, body: bytes) -> bool:
    """Whether `body` is a whole answer, not streamed, to a call to `path`."""
    try:
        if path in (names.PATH_CHAT, names.PATH_COMPLETIONS):
            whole = _CHOICES.decode(body)
            reasons = [choice.finish_reason for choice in whole.choices]
            return whole.error is None and bool(reasons) and all(reason in _REASONS for reason in reasons)
        if path == names.PATH_RESPONSES:
            return _is_finished(_RESPONSE.decode(body))
        if path == names.PATH_MESSAGES:
            message = _MESSAGE.decode(body)
            return message.type == "message" and message.stop_reason in _STOP_REASONS
        return _ANY.decode(body).error is None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


class EndWatch:
    """Looks at a stream's events as they pass. Give it every part; then ask."""

    __slots__ = ("_failed", "_finished", "_is_over", "_path", "_seen")

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._is_over = False
        self._failed = path not in PATHS_WITH_PROMPT

    @property
    def is_proper(self) -> bool:
        """Whether what passed was a whole stream that ended well."""
        return self._is_over and not self._failed and bool(self._seen) and self._seen == self._finished

    def feed(self, events: bytes) -> None:
        """Whole events."""
        if self._failed:
            return
        for line in events.splitlines():
            if line.startswith(b"data:"):
                try:
                    self._look(line[5:].strip())
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    self._failed = True

    def _look(self, data: bytes) -> None:
        if self._is_over:
            self._failed = True  # something came after the end
        elif self._path == names.PATH_RESPONSES:
            self._look_at_response(data)
        elif self._path == names.PATH_MESSAGES:
            self._look_at_message(data)
        elif data == _DONE:
            self._is_over = True
        else:
            self._look_at_choices(_CHOICES.decode(data))

    def _look_at_choices(self, chunk: _Choices) -> None:
        self._failed |= chunk.error is not None
        for choice in chunk.choices:
            self._seen.add(choice.index)
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
                self._failed |= choice.finish_reason not in _REASONS

    def _look_at_response(self, data: bytes) -> None:
        kind = _TYPED.decode(data).type
        self._seen.add(0)
        if kind in ("response.completed", "response.incomplete"):
            self._end(is_good=_is_finished(_RESPONSE_EVENT.decode(data).response))
        elif kind in ("error", "response.failed", "response.cancelled"):
            self._failed = True

    def _look_at_message(self, data: bytes) -> None:
        kind = _TYPED.decode(data).type
        self._seen.add(0)
        if kind == "message_delta" and (reason := _MESSAGE_DELTA.decode(data).delta.stop_reason) is not None:
            self._finished.add(0)
            self._failed |= reason not in _STOP_REASONS
        elif kind == "message_stop":
            self._is_over = True
        elif kind == "error":
            self._failed = True

    def _end(self, *, is_good: bool) -> None:
        self._is_over = True
        self._finished.add(0)
        self._failed |= not is_good


def _is_finished(response: _Response) -> bool:
    if response.error is not None:
        return False
    details = response.incomplete_details
    return response.status == "completed" or (
        response.status == "incomplete" and details is not None and details.reason == "max_output_tokens"
    )
