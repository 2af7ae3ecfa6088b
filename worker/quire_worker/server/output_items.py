"""What a model says as the items of a response, and the events that tell of them: the same for a stream and for an answer in one go.

    parts ──> take ──> events of the item that is open; a part of another kind closes it and opens the next
              end ───> events that close the last one

Pure: no JSON, no HTTP. Items are numbered in their order; ids follow from the response's, so that the same answer has the same ids.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol

import msgspec

from quire_contract.openai.responses import TokenLogprob
from quire_contract.openai.responses_objects import (
    ContentPartAdded,
    ContentPartDone,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    FunctionCallItem,
    ItemStatus,
    OutputItem,
    OutputItemAdded,
    OutputItemDone,
    OutputMessage,
    OutputText,
    OutputTextDelta,
    OutputTextDone,
    ReasoningItem,
    ReasoningTextDelta,
    ReasoningTextDone,
    ReasoningTextPart,
)
from quire_worker.server.parts import ContentText, Part, ReasoningText, ToolArguments, ToolCallBegin

Event = msgspec.Struct


class Numbers:
    """Counts a stream's events from 0."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def next(self) -> int:
        """The next event's sequence number."""
        return next(self._numbers)


class _OpenItem(Protocol):
    """An item that is being written."""

    def opened(self) -> list[Event]: ...
    def add(self, text: str) -> Event: ...
    def closed(self) -> list[Event]: ...
    def item(self, status: ItemStatus) -> OutputItem: ...


class _Message:
    def __init__(self, numbers: Numbers, index: int, item_id: str) -> None:
        self._numbers, self._index, self._id = numbers, index, item_id
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    def opened(self) -> list[Event]:
        return [
            ContentPartAdded(
                sequence_number=self._numbers.next(),
                output_index=self._index,
                item_id=self._id,
                content_index=0,
                part=self._part(),
            )
        ]

    def add(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Event:
        self._texts.append(text)
        self._logprobs.extend(logprobs)
        return OutputTextDelta(
            sequence_number=self._numbers.next(),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            delta=text,
            logprobs=list(logprobs),
        )

    def closed(self) -> list[Event]:
        part = self._part()
        return [
            OutputTextDone(
                sequence_number=self._numbers.next(),
                output_index=self._index,
                item_id=self._id,
                content_index=0,
                text=part.text,
                logprobs=part.logprobs,
            ),
            ContentPartDone(
                sequence_number=self._numbers.next(),
                output_index=self._index,
                item_id=self._id,
                content_index=0,
                part=part,
            ),
        ]

    def item(self, status: ItemStatus) -> OutputItem:
        return OutputMessage(id=self._id, status=status, content=[] if status == "in_progress" else [self._part()])

    def _part(self) -> OutputText:
        return OutputText(text="".join(self._texts), logprobs=list(self._logprobs))


class _Reasoning:
    def __init__(self, numbers: Numbers, index: int, item_id: str) -> None:
        self._numbers, self._index, self._id = numbers, index, item_id
        self._texts: list[str] = []

    def opened(self) -> list[Event]:
        return [
            ContentPartAdded(
                sequence_number=self._numbers.next(),
                output_index=self._index,
                item_id=self._id,
                content_index=0,
                part=self._part(),
            )
        ]

    def add(self, text: str) -> Event:
        self._texts.append(text)
        return ReasoningTextDelta(
            sequence_number=self._numbers.next(),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            delta=text,
        )

    def closed(self) -> list[Event]:
        part = self._part()
        return [
            ReasoningTextDone(
                sequence_number=self._numbers.next(),
                output_index=self._index,
                item_id=self._id,
                content_index=0,
                text=part.text,
            ),
            ContentPartDone(
                sequence_number=self._numbers.next(),
                output_index=self._index,
                item_id=self._id,
                content_index=0,
                part=part,
            ),
        ]

    def item(self, status: ItemStatus) -> OutputItem:
        return ReasoningItem(id=self._id, status=status, content=[] if status == "in_progress" else [self._part()])

    def _part(self) -> ReasoningTextPart:
        return ReasoningTextPart(text="".join(self._texts))


class _Call:
    def __init__(self, numbers: Numbers, index: int, item_id: str, call: ToolCallBegin) -> None:
        self._numbers, self._index, self._id = numbers, index, item_id
        self._call = call
        self._texts: list[str] = []

    def opened(self) -> list[Event]:
        return []

    def add(self, text: str) -> Event:
        self._texts.append(text)
        return FunctionCallArgumentsDelta(
            sequence_number=self._numbers.next(), output_index=self._index, item_id=self._id, delta=text
        )

    def closed(self) -> list[Event]:
        return [
            FunctionCallArgumentsDone(
                sequence_number=self._numbers.next(),
                output_index=self._index,
                item_id=self._id,
                arguments="".join(self._texts),
                name=self._call.name,
            )
        ]

    def item(self, status: ItemStatus) -> OutputItem:
        call = self._call
        return FunctionCallItem(
            id=self._id, status=status, call_id=call.id, name=call.name, arguments="".join(self._texts)
        )


class OutputItems:
    """The items of one response, as they come."""

    def __init__(self, response_id: str, numbers: Numbers) -> None:
        self._stem = response_id.partition("_")[2]
        self._numbers = numbers
        self._open: _OpenItem | None = None
        self.done: list[OutputItem] = []
        """Those that are complete."""

    def take(self, parts: Sequence[Part], logprobs: Sequence[TokenLogprob] = ()) -> list[Event]:
        """The events of these parts. `logprobs`, of the tokens that they are made of, go to the message if that is what is open at last."""
        events: list[Event] = []
        for part in parts[:-1]:
            events += self._take(part, ())
        if parts:
            events += self._take(parts[-1], logprobs)
        elif logprobs and isinstance(self._open, _Message):
            events.append(self._open.add("", logprobs))
        return events

    def end(self, status: ItemStatus) -> list[Event]:
        """Close the last item with this status; an answer of nothing is an empty message."""
        events: list[Event] = []
        if self._open is None and not self.done:
            events += self._begin(_Message(self._numbers, 0, f"msg_{self._stem}_0"))
        return events + self._close(status)

    def _take(self, part: Part, logprobs: Sequence[TokenLogprob]) -> list[Event]:
        index = len(self.done) + (self._open is not None)
        match part:
            case ContentText(text):
                events: list[Event] = []
                if not isinstance(self._open, _Message):
                    events = self._begin(_Message(self._numbers, index, f"msg_{self._stem}_{index}"))
                assert isinstance(self._open, _Message), "it was just begun"
                return [*events, self._open.add(text, logprobs)]
            case ReasoningText(text):
                events = []
                if not isinstance(self._open, _Reasoning):
                    events = self._begin(_Reasoning(self._numbers, index, f"rs_{self._stem}_{index}"))
                assert self._open is not None, "it was just begun"
                return [*events, self._open.add(text)]
            case ToolCallBegin():
                return self._begin(_Call(self._numbers, index, f"fc_{self._stem}_{index}", part))
            case ToolArguments(_, text):
                assert isinstance(self._open, _Call), "a call's arguments follow its beginning"
                return [self._open.add(text)]

    def _begin(self, item: _OpenItem) -> list[Event]:
        events = self._close("completed")
        self._open = item
        index, shown = len(self.done), item.item("in_progress")
        added = OutputItemAdded(sequence_number=self._numbers.next(), output_index=index, item=shown)
        return [*events, added, *item.opened()]

    def _close(self, status: ItemStatus) -> list[Event]:
        if self._open is None:
            return []
        events, item = self._open.closed(), self._open.item(status)
        index = len(self.done)
        self.done.append(item)
        self._open = None
        return [*events, OutputItemDone(sequence_number=self._numbers.next(), output_index=index, item=item)]
