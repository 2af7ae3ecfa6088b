"""Pieces of a choice as the answer of POST /v1/messages, whole or as its stream of events.

Pure: pieces in, bytes out. A stream's events, put together, say what the whole answer says.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from quire_contract.anthropic.errors import anthropic_error
from quire_contract.anthropic.objects import (
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessagesErrorEvent,
    MessageStart,
    MessageStop,
    MessagesUsage,
    Ping,
    SignatureDelta,
    StopDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from quire_contract.named_events import named_event
from quire_contract.openai.errors import ApiError
from quire_contract.openai.responses import Usage
from quire_worker.server.answers import Gathered, Head, ShownUsage
from quire_worker.server.choice import Piece
from quire_worker.server.parts import ContentText, Part, ReasoningText, ToolArguments, ToolCallBegin
from quire_worker.server.reader import Reader, whole_piece

BROKEN_INPUT = "INVALID_JSON"
"""A tool's input must be an object; what a model wrote instead is under this name, as Anthropic recommends for sending it back."""


class _Blocks:
    """The blocks of one message, as they come: parts in, events out."""

    def __init__(self, message_id: str) -> None:
        self._signature = message_id
        self._open: Part | None = None
        self._texts: list[str] = []
        self.done: list[ContentBlock] = []
        self.has_tools = False

    def take(self, parts: Sequence[Part]) -> list[msgspec.Struct]:
        """The events of these parts."""
        events: list[msgspec.Struct] = []
        for part in parts:
            if isinstance(part, ToolCallBegin):
                self.has_tools = True
                events += self._begin(part)
                continue
            if not isinstance(part, ToolArguments) and type(part) is not type(self._open):
                events += self._begin(part)
            self._texts.append(part.text)
            events.append(ContentBlockDelta(index=len(self.done), delta=_delta(part)))
        return events

    def end(self) -> list[msgspec.Struct]:
        """Close the last block."""
        if self._open is None:
            return []
        events: list[msgspec.Struct] = []
        index, block = len(self.done), _block(self._open, "".join(self._texts), self._signature)
        if isinstance(block, ThinkingBlock):
            events.append(ContentBlockDelta(index=index, delta=SignatureDelta(signature=block.signature)))
        self.done.append(block)
        self._open, self._texts = None, []
        return [*events, ContentBlockStop(index=index)]

    def _begin(self, part: Part) -> list[msgspec.Struct]:
        events = self.end()
        self._open = part
        return [*events, ContentBlockStart(index=len(self.done), content_block=_block(part, "", ""))]


def _delta(part: ContentText | ReasoningText | ToolArguments) -> TextDelta | ThinkingDelta | InputJsonDelta:
    match part:
        case ContentText(text):
            return TextDelta(text=text)
        case ReasoningText(text):
            return ThinkingDelta(thinking=text)
        case ToolArguments(_, text):
            return InputJsonDelta(partial_json=text)


def _block(begun: Part, text: str, signature: str) -> ContentBlock:
    match begun:
        case ContentText():
            return TextBlock(text=text)
        case ReasoningText():
            return ThinkingBlock(thinking=text, signature=signature)
        case ToolCallBegin(_, call_id, name):
            return ToolUseBlock(id=call_id, name=name, input=_input(text))
        case ToolArguments():
            raise AssertionError("a call's arguments follow its beginning")


def _input(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {BROKEN_INPUT: text}


class MessagesAnswer:
    """One message. It has one choice."""

    def __init__(self, head: Head, *, stops: Sequence[str], reader: Reader) -> None:
        """`stops` are the request's stop sequences; `reader` is that of the one choice."""
        self._head = head
        self._stops = frozenset(stops)
        self._reader = reader
        self._blocks = _Blocks(head.id)
        self._finish_reason: str | None = None
        self._stop: int | str | None = None

    def begin(self, usage: Usage) -> bytes:
        """The message, empty, with the prompt's tokens."""
        message = self._message(usage, None, None)
        return named_event(MessageStart(message=message)) + named_event(Ping())

    def events(self, arrived: Sequence[tuple[int, Piece]], usage: ShownUsage) -> bytes:
        """What these pieces add to the message's blocks. Usage comes at the beginning and at the end."""
        del usage
        events: list[msgspec.Struct] = []
        for _, piece in arrived:
            events += self._blocks.take(self._reader.take(piece))
            self._finish_reason, self._stop = piece.finish_reason, piece.stop_reason
        return b"".join(map(named_event, events))

    def num_held(self, index: int) -> int:
        del index
        return 0

    def end(self, usage: Usage, *, include_usage: bool) -> bytes:
        """The last block's end, why the message ends, and all its tokens."""
        del include_usage
        events = self._blocks.end()
        reason, stop = self._ending()
        delta = MessageDelta(delta=StopDelta(stop_reason=reason, stop_sequence=stop), usage=_usage(usage))
        return b"".join(map(named_event, [*events, delta, MessageStop()]))

    def error(self, error: ApiError) -> bytes:
        return named_event(MessagesErrorEvent(error=anthropic_error(error)))

    def whole(self, choices: Sequence[Gathered], usage: Usage) -> bytes:
        (choice,) = choices
        self._finish_reason, self._stop = choice.reason, choice.stop_reason
        self._blocks.take(self._reader.take(whole_piece(choice)))
        self._blocks.end()
        return msgspec.json.encode(self._message(usage, *self._ending()))

    def _ending(self) -> tuple[StopReason, str | None]:
        """Why the message ended, and the stop sequence that did it."""
        if self._finish_reason == "length":
            return "max_tokens", None
        if isinstance(self._stop, str) and self._stop in self._stops:
            return "stop_sequence", self._stop
        return ("tool_use" if self._blocks.has_tools else "end_turn"), None

    def _message(self, usage: Usage, reason: StopReason | None, stop: str | None) -> Message:
        head = self._head
        return Message(
            id=head.id,
            model=head.model,
            content=list(self._blocks.done),
            stop_reason=reason,
            stop_sequence=stop,
            usage=_usage(usage),
        )


def _usage(usage: Usage) -> MessagesUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessagesUsage(
        input_tokens=usage.prompt_tokens - cached,
        output_tokens=usage.completion_tokens,
        cache_read_input_tokens=cached,
    )
