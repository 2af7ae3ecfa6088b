"""Pieces of choices as OpenAI's JSON: whole answers and stream events, for chats and completions.

Pure: pieces in, bytes out. A stream's events, put together, say what the whole answer says.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

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
    CompletionLogprobs,
    CompletionTokensDetails,
    FinishReason,
    ResponseMessage,
    StreamError,
    Usage,
    sse_event,
)
from quire_worker.request import PromptLogprobs
from quire_worker.server.choice import Piece, TokenEntry
from quire_worker.server.logprobs import Vocabulary, chat_logprobs, completion_logprobs
from quire_worker.server.message_reader import MessageReader
from quire_worker.server.parsing.dialect import Reading
from quire_worker.server.parts_json import delta_of, message_of
from quire_worker.server.prompt_shown import NOTHING_MORE, Extras, prompt_fields, with_echo

_finish_reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "repetition"}


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

    def num_held(self, index: int) -> int:
        """Tokens of a choice, the last ones, whose log-probabilities may be needed once more."""
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
        self.scores: Sequence[PromptLogprobs] = ()
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    def add(self, piece: Piece) -> None:
        self._texts.append(piece.text)
        self.token_ids.extend(piece.token_ids)
        self.entries.extend(piece.entries)
        self.scores = piece.scores or self.scores
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

    def __init__(
        self,
        head: Head,
        vocabulary: Vocabulary,
        *,
        logprobs: bool,
        extras: Extras = NOTHING_MORE,
        reading: Reading | None = None,
        token_text: Callable[[int], str] | None = None,
    ) -> None:
        """Without a `reading` all text is content. `token_text`: a token alone as text, if the vocabulary shows something else."""
        self._head = head
        self._vocabulary = vocabulary
        self._logprobs = logprobs
        self._extras = extras
        self._reading = reading
        self._token_text = token_text or vocabulary.token_text
        self._readers: dict[int, MessageReader] = {}
        self._begun: set[int] = set()

    def events(self, arrived: Sequence[tuple[int, Piece]], usage: ShownUsage) -> bytes:
        """Of each choice: first the role, then text, then a chunk with the finish reason only."""
        events: list[bytes] = []
        for index, piece in arrived:
            if index not in self._begun:
                is_first = not self._begun
                self._begun.add(index)
                opening = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))
                events.append(self._event([opening], usage, self._of_prompt(piece.scores) if is_first else {}))
            token_ids = piece.token_ids if self._extras.token_ids and piece.token_ids else UNSET
            for delta, entries in self._deltas(index, piece):
                logprobs = chat_logprobs(entries, self._vocabulary) if self._logprobs else None
                more = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, token_ids=token_ids)
                events.append(self._event([more], usage))
                token_ids = UNSET  # they go with the first of what they brought
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
        """What a piece adds to its choice, with the log-probabilities that go out with it; something if its token ids are shown."""
        shows_ids = self._extras.token_ids and bool(piece.token_ids)
        if self._reading is None:
            is_told = piece.text or piece.entries or shows_ids
            return [(ChatDelta(content=piece.text), piece.entries)] if is_told else []
        reader = self._reader(index)
        deltas = [(delta_of(part), reader.take_entries()) for part in reader.take(piece)]
        rest = reader.take_entries() if piece.finish_reason is not None else []
        if rest or (shows_ids and not deltas):
            deltas.append((ChatDelta(content=""), rest))
        return deltas

    def _reader(self, index: int) -> MessageReader:
        assert self._reading is not None, "only where messages are read"
        if index not in self._readers:
            self._readers[index] = MessageReader(self._reading, self._token_text, f"{self._head.id}/{index}")
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

    def num_held(self, index: int) -> int:
        return self._readers[index].num_held if index in self._readers else 0

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
                token_ids=choice.token_ids if self._extras.token_ids else UNSET,
            )
            for index, choice in enumerate(choices)
        ]
        of_prompt = self._of_prompt(choices[0].scores)
        return msgspec.json.encode(
            ChatCompletion(
                id=head.id,
                created=head.created,
                model=head.model,
                choices=shown,
                usage=self._with_details(usage),
                **of_prompt,
            )
        )

    def _of_prompt(self, scores: Sequence[PromptLogprobs] | None) -> dict[str, Any]:
        """Fields of the whole answer, or of a stream's first chunk."""
        return prompt_fields(self._extras, 0, scores or (), self._vocabulary)

    def _message(self, index: int, choice: Gathered) -> ResponseMessage:
        if self._reading is None:
            return ResponseMessage(content=choice.text)
        whole = Piece(
            text=choice.text, token_ids=choice.token_ids, entries=[], finish_reason=choice.reason, stop_reason=None
        )
        return message_of(self._reader(index).take(whole))

    def _event(self, choices: list[ChatChunkChoice], usage: ShownUsage, of_prompt: Mapping[str, Any] = {}) -> bytes:
        head = self._head
        if isinstance(usage, Usage):
            usage = self._with_details(usage)
        return sse_event(
            ChatCompletionChunk(
                id=head.id, created=head.created, model=head.model, choices=choices, usage=usage, **of_prompt
            )
        )


class CompletionAnswer:
    """text_completion, whole or in pieces."""

    def __init__(self, head: Head, vocabulary: Vocabulary, *, logprobs: bool, extras: Extras = NOTHING_MORE) -> None:
        self._head = head
        self._vocabulary = vocabulary
        self._logprobs = logprobs
        self._extras = extras
        self._begun: set[int] = set()

    def events(self, arrived: Sequence[tuple[int, Piece]], usage: ShownUsage) -> bytes:
        """One event a piece; the last one of a choice has its finish reason."""
        return b"".join(self._event([self._choice(index, piece)], usage) for index, piece in arrived)

    def begin(self, usage: Usage) -> bytes:
        del usage
        return b""

    def num_held(self, index: int) -> int:
        del index
        return 0

    def end(self, usage: Usage, *, include_usage: bool) -> bytes:
        """A chunk without choices brings the usage."""
        return (self._event([], usage) if include_usage else b"") + SSE_DONE

    def error(self, error: ApiError) -> bytes:
        return stream_error(error)

    def whole(self, choices: Sequence[Gathered], usage: Usage) -> bytes:
        shown = [
            CompletionChoice(
                index=index,
                text=self._echo(index) + choice.text,
                finish_reason=choice.reason,
                logprobs=self._all_logprobs(index, choice.entries, choice.scores),
                stop_reason=choice.stop_reason,
                token_ids=choice.token_ids if self._extras.token_ids else UNSET,
                **prompt_fields(self._extras, index, choice.scores, self._vocabulary),
            )
            for index, choice in enumerate(choices)
        ]
        return msgspec.json.encode(self._completion(shown, usage))

    def _choice(self, index: int, piece: Piece) -> CompletionChoice:
        ended = piece.finish_reason is not None
        is_first = index not in self._begun
        self._begun.add(index)
        scores = piece.scores or ()
        return CompletionChoice(
            index=index,
            text=self._echo(index) + piece.text if is_first else piece.text,
            logprobs=self._all_logprobs(index, piece.entries, scores)
            if is_first
            else self._later_logprobs(index, piece.entries),
            finish_reason=_finish_reasons[piece.finish_reason] if piece.finish_reason is not None else None,
            stop_reason=piece.stop_reason if ended else UNSET,
            token_ids=piece.token_ids if self._extras.token_ids else UNSET,
            **(prompt_fields(self._extras, index, scores, self._vocabulary) if is_first else {}),
        )

    def _echo(self, index: int) -> str:
        echo = self._extras.echo_of(index)
        return "" if echo is None else echo.text

    def _all_logprobs(
        self, index: int, entries: Sequence[TokenEntry], scores: Sequence[PromptLogprobs]
    ) -> CompletionLogprobs | None:
        """From the choice's beginning on: those of an echo too."""
        found = self._later_logprobs(index, entries)
        if found is None or self._extras.echo_of(index) is None:
            return found
        return with_echo(
            self._extras.prompt_of(index), scores, self._extras.echoed_logprobs or 0, found, self._vocabulary
        )

    def _later_logprobs(self, index: int, entries: Sequence[TokenEntry]) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        return completion_logprobs(entries, self._vocabulary, len(self._echo(index)))

    def _event(self, choices: list[CompletionChoice], usage: ShownUsage) -> bytes:
        return sse_event(self._completion(choices, usage))

    def _completion(self, choices: list[CompletionChoice], usage: ShownUsage) -> Completion:
        head = self._head
        return Completion(id=head.id, created=head.created, model=head.model, choices=choices, usage=usage)
