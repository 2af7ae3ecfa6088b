"""Pieces of a choice as the answer of POST /v1/responses, whole or as its stream of events.

Pure: pieces in, bytes out. A stream's events, put together, say what the whole answer says: both come out of one `OutputItems`.
"""

import sys
from collections.abc import Sequence

import msgspec

from quire_contract.named_events import named_event
from quire_contract.openai.errors import ApiError
from quire_contract.openai.responses import TokenLogprob, Usage
from quire_contract.openai.responses_chat import wants_logprobs
from quire_contract.openai.responses_objects import (
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    OutputTokensDetails,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseObject,
    ResponsesError,
    ResponseStatus,
    ResponsesUsage,
)
from quire_contract.openai.responses_requests import ReasoningConfig, ResponsesRequest, TextConfig, TextFormat
from quire_worker.server.answers import Gathered, Head, ShownUsage
from quire_worker.server.choice import Piece, TokenEntry
from quire_worker.server.logprobs import Vocabulary, chat_logprobs
from quire_worker.server.output_items import Event, Numbers, OutputItems
from quire_worker.server.reader import Reader, whole_piece

_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


class ResponsesAnswer:
    """One response. It has one choice."""

    def __init__(
        self,
        head: Head,
        vocabulary: Vocabulary,
        *,
        request: ResponsesRequest,
        reader: Reader,
    ) -> None:
        """`reader` is that of the one choice."""
        self._head = head
        self._vocabulary = vocabulary
        self._request = request
        self._logprobs = wants_logprobs(request)
        self._reader = reader
        self._numbers = Numbers()
        self._items = OutputItems(head.id, self._numbers)
        self._finish_reason: str | None = None

    def begin(self, usage: Usage) -> bytes:
        """The response, empty, twice: created and in progress."""
        del usage
        response = self._response("in_progress", None)
        created = ResponseCreated(sequence_number=self._numbers.next(), response=response)
        return _encoded(
            [created, ResponseInProgress(sequence_number=self._numbers.next(), response=response)],
        )

    def events(self, arrived: Sequence[tuple[int, Piece]], usage: ShownUsage) -> bytes:
        """What these pieces add to the response's items. Usage comes with the last event only."""
        del usage
        events: list[Event] = []
        for _, piece in arrived:
            self._finish_reason = piece.finish_reason
            parts = self._reader.take(piece)
            if parts or piece.entries or piece.finish_reason is not None:
                events += self._items.take(parts, self._shown(self._reader.take_entries()))
        return _encoded(events)

    def num_held(self, index: int) -> int:
        """The events that close a message repeat all of its log-probabilities."""
        del index
        return sys.maxsize if self._logprobs else 0

    def end(self, usage: Usage, *, include_usage: bool) -> bytes:
        """The last item's end, and the whole response."""
        del include_usage
        events = self._items.end(self._item_status)
        kind = ResponseIncomplete if self._item_status == "incomplete" else ResponseCompleted
        response = self._response(self._item_status, usage)
        return _encoded([*events, kind(sequence_number=self._numbers.next(), response=response)])

    def error(self, error: ApiError) -> bytes:
        """The response with what is complete of it, and why there is no more."""
        problem = ResponsesError(code=_CODES.get(error.status, "server_error"), message=error.message)
        response = msgspec.structs.replace(self._response("failed", None), error=problem)
        return named_event(ResponseFailed(sequence_number=self._numbers.next(), response=response))

    def whole(self, choices: Sequence[Gathered], usage: Usage) -> bytes:
        (choice,) = choices
        self._finish_reason = choice.reason
        parts = self._reader.take(whole_piece(choice))
        said = self._reader.take_entries()[self._reader.num_reasoning_tokens or 0 :]
        self._items.take(parts, self._shown(said))
        self._items.end(self._item_status)
        return msgspec.json.encode(self._response(self._item_status, usage))

    @property
    def _item_status(self) -> ItemStatus:
        return "incomplete" if self._finish_reason == "length" else "completed"

    def _shown(self, entries: Sequence[TokenEntry]) -> Sequence[TokenLogprob]:
        return chat_logprobs(entries, self._vocabulary).content or () if self._logprobs else ()

    def _response(self, status: ResponseStatus, usage: Usage | None) -> ResponseObject:
        head, request = self._head, self._request
        return ResponseObject(
            id=head.id,
            created_at=head.created,
            model=head.model,
            status=status,
            output=list(self._items.done),
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=request.temperature,
            top_p=request.top_p,
            tool_choice=request.tool_choice or "auto",
            tools=request.tools or [],
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            max_tool_calls=request.max_tool_calls,
            metadata=request.metadata or {},
            reasoning=request.reasoning or ReasoningConfig(),
            text=_text_config(request),
            top_logprobs=request.top_logprobs or 0,
            usage=None if usage is None else _usage(usage, self._reader.num_reasoning_tokens or 0),
            user=request.user,
            safety_identifier=request.safety_identifier,
            prompt_cache_key=request.prompt_cache_key,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
        )


def _text_config(request: ResponsesRequest) -> TextConfig:
    plain = TextFormat(type="text")
    if request.text is None:
        return TextConfig(format=plain)
    return request.text if request.text.format is not None else msgspec.structs.replace(request.text, format=plain)


def _usage(usage: Usage, num_reasoning: int) -> ResponsesUsage:
    return ResponsesUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
        output_tokens_details=OutputTokensDetails(reasoning_tokens=num_reasoning),
    )


def _encoded(events: Sequence[Event]) -> bytes:
    return b"".join(map(named_event, events))
