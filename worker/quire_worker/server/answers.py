"""Pieces of choices as OpenAI's JSON: whole answers and stream events, for chats and completions.

Pure: pieces in, bytes out. A stream's events, put together, say what the whole answer says.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from quire_contract.openai.errors import ApiError
from quire_contract.openai.responses import (
    SSE_DONE,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    Completion,
    CompletionChoice,
    CompletionTokensDetails,
    FinishReason,
    ResponseMessage,
    StreamError,
    Usage,
    sse_event,
)
from quire_worker.server.choice import Piece, TokenEntry
from quire_worker.server.logprobs import Vocabulary, chat_logprobs, completion_logprobs
from quire_worker.server.message_reader import MessageReader
from quire_worker.server.parsing.dialect import Reading
from quire_worker.server.parts_json import delta_of, message_of

_finish_reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What every part of one answer repeats."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    """The name the client asked for."""


ShownUsage = Usage | UnsetType | None
"""The `usage` of a chunk with choices: left out, null because a last chunk brings it, or the usage so far."""


class Answer(Protocol):
    """One answer's form."""

    def begin(self, usage: Usage) -> bytes:
        """What a stream starts with, before any piece; `usage` knows the prompt only."""
        ...

    def events(self, arrived: Sequence[tuple[int, Piece]], usage: ShownUsage) -> bytes:
        """The SSE events of these pieces, in one run of bytes."""
        ...

    def end(self, usage: Usage, *, include_usage: bool) -> bytes:
        """What a stream ends with, after every choice's finish reason."""
        ...

    def error(self, error: ApiError) -> bytes:
        """What a stream ends with when it breaks."""
        ...

    def whole(self, choices: Sequence["Gathered"], usage: Usage) -> bytes:
        """The JSON of the answer in one go."""
        ...


class Gathered:
    """A choice's pieces put together, for an answer in one go."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.token_ids: list[int] = []
        self.entries: list[TokenEntry] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    def add(self, piece: Piece) -> None:
        self._texts.append(piece.text)
        self.token_ids.extend(piece.token_ids)
        self.entries.extend(piece.entries)
        self.finish_reason = piece.finish_reason
        self.stop_reason = piece.stop_reason

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def reason(self) -> FinishReason:
        """The finish reason of a choice that has ended."""
        assert self.finish_reason is not None, "the choice has not ended"
        return _finish_reasons[self.finish_reason]


def stream_error(error: ApiError) -> bytes:
    """An error inside a stream as OpenAI's clients read it."""
    return sse_event(StreamError(error.detail())) + SSE_DONE


class ChatAnswer:
    """chat.completion and chat.completion.chunk."""

    def __init__(self, head: Head, vocabulary: Vocabulary, *, logprobs: bool, reading: Reading | None = None) -> None:
        """Without a `reading` all text is content."""
        self._head = head
        self._vocabulary = vocabulary
        self._logprobs = logprobs
        self._reading = reading
        self._readers: dict[int, MessageReader] = {}
        self._begun: set[int] = set()

    def events(self, arrived: Sequence[tuple[int, Piece]], usage: ShownUsage) -> bytes:
        """Of each choice: first the role, then text, then a chunk with the finish reason only."""
        events: list[bytes] = []
        for index, piece in arrived:
            if index not in self._begun:
                self._begun.add(index)
                opening = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))
                events.append(self._event([opening], usage))
            for delta, entries in self._deltas(index, piece):
                logprobs = chat_logprobs(entries, self._vocabulary) if self._logprobs else None
                events.append(self._event([ChatChunkChoice(index=index, delta=delta, logprobs=logprobs)], usage))
            if piece.finish_reason is not None:
                closing = ChatChunkChoice(
                    index=index,
                    delta=ChatDelta(),
                    finish_reason=self._reason(index, _finish_reasons[piece.finish_reason]),
                    stop_reason=piece.stop_reason,
                )
                events.append(self._event([closing], usage))
        return b"".join(events)

    def _deltas(self, index: int, piece: Piece) -> list[tuple[ChatDelta, list[TokenEntry]]]:
        """What a piece adds to its choice, with the log-probabilities that go out with it."""
        if self._reading is None:
            return [(ChatDelta(content=piece.text), piece.entries)] if piece.text or piece.entries else []
        reader = self._reader(index)
        deltas = [(delta_of(part), reader.take_entries()) for part in reader.take(piece)]
        if piece.finish_reason is not None and (rest := reader.take_entries()):
            deltas.append((ChatDelta(content=""), rest))
        return deltas

    def _reader(self, index: int) -> MessageReader:
        assert self._reading is not None, "only where messages are read"
        if index not in self._readers:
            self._readers[index] = MessageReader(self._reading, self._vocabulary.token_text)
        return self._readers[index]

    def _reason(self, index: int, reason: FinishReason) -> FinishReason:
        return reason if self._reading is None else self._reader(index).finish_reason(reason)

    def _with_details(self, usage: Usage) -> Usage:
        """The usage with the reasoning of all choices so far, of a model that reasons."""
        if self._reading is None or not self._reading.reasons:
            return usage
        num_tokens = sum(reader.num_reasoning_tokens or 0 for reader in self._readers.values())
        details = CompletionTokensDetails(reasoning_tokens=num_tokens)
        return msgspec.structs.replace(usage, completion_tokens_details=details)

    def begin(self, usage: Usage) -> bytes:
        del usage
        return b""

    def end(self, usage: Usage, *, include_usage: bool) -> bytes:
        """A chunk without choices brings the usage."""
        return (self._event([], usage) if include_usage else b"") + SSE_DONE

    def error(self, error: ApiError) -> bytes:
        return stream_error(error)

    def whole(self, choices: Sequence[Gathered], usage: Usage) -> bytes:
        head = self._head
        messages = [self._message(index, choice) for index, choice in enumerate(choices)]
        shown = [
            ChatChoice(
                index=index,
                message=messages[index],
                finish_reason=self._reason(index, choice.reason),
                logprobs=chat_logprobs(choice.entries, self._vocabulary) if self._logprobs else None,
                stop_reason=choice.stop_reason,
            )
            for index, choice in enumerate(choices)
        ]
        return msgspec.json.encode(
            ChatCompletion(
                id=head.id, created=head.created, model=head.model, choices=shown, usage=self._with_details(usage)
            )
        )

    def _message(self, index: int, choice: Gathered) -> ResponseMessage:
        if self._reading is None:
            return ResponseMessage(content=choice.text)
        whole = Piece(
            text=choice.text, token_ids=choice.token_ids, entries=[], finish_reason=choice.reason, stop_reason=None
        )
        return message_of(self._reader(index).take(whole))

    def _event(self, choices: list[ChatChunkChoice], usage: ShownUsage) -> bytes:
        head = self._head
        if isinstance(usage, Usage):
            usage = self._with_details(usage)
        return sse_event(
            ChatCompletionChunk(id=head.id, created=head.created, model=head.model, choices=choices, usage=usage)
        )


class CompletionAnswer:
    """text_completion, whole or in pieces."""

    def __init__(self, head: Head, vocabulary: Vocabulary, *, logprobs: bool) -> None:
        self._head = head
        self._vocabulary = vocabulary
        self._logprobs = logprobs

    def events(self, arrived: Sequence[tuple[int, Piece]], usage: ShownUsage) -> bytes:
        """One event a piece; the last one of a choice has its finish reason."""
        return b"".join(self._event([self._choice(index, piece)], usage) for index, piece in arrived)

    def begin(self, usage: Usage) -> bytes:
        del usage
        return b""

    def end(self, usage: Usage, *, include_usage: bool) -> bytes:
        """A chunk without choices brings the usage."""
        return (self._event([], usage) if include_usage else b"") + SSE_DONE

    def error(self, error: ApiError) -> bytes:
        return stream_error(error)

    def whole(self, choices: Sequence[Gathered], usage: Usage) -> bytes:
        shown = [
            CompletionChoice(
                index=index,
                text=choice.text,
                finish_reason=choice.reason,
                logprobs=completion_logprobs(choice.entries, self._vocabulary) if self._logprobs else None,
                stop_reason=choice.stop_reason,
            )
            for index, choice in enumerate(choices)
        ]
        return msgspec.json.encode(self._completion(shown, usage))

    def _choice(self, index: int, piece: Piece) -> CompletionChoice:
        ended = piece.finish_reason is not None
        return CompletionChoice(
            index=index,
            text=piece.text,
            logprobs=completion_logprobs(piece.entries, self._vocabulary) if self._logprobs else None,
            finish_reason=_finish_reasons[piece.finish_reason] if piece.finish_reason is not None else None,
            stop_reason=piece.stop_reason if ended else UNSET,
        )

    def _event(self, choices: list[CompletionChoice], usage: ShownUsage) -> bytes:
        return sse_event(self._completion(choices, usage))

    def _completion(self, choices: list[CompletionChoice], usage: ShownUsage) -> Completion:
        head = self._head
        return Completion(id=head.id, created=head.created, model=head.model, choices=choices, usage=usage)
