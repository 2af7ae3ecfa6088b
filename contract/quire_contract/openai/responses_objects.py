"""The answer of POST /v1/responses and the events of its stream, as OpenAI's clients read them. All fields are always written.

Encode whole answers with `msgspec.json.encode`, events with `named_events.named_event`; a stream has no [DONE].
"""

from typing import Any, Literal

import msgspec

from quire_contract.openai.responses import TokenLogprob
from quire_contract.openai.responses_requests import (
    ReasoningConfig,
    ResponsesTool,
    ResponsesToolChoice,
    TextConfig,
    TextFormat,
)

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """Text of a message."""

    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningTextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    """Text of the model's reasoning."""

    text: str


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """What the assistant says."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call of one of the request's functions."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """The model's reasoning, in plain text."""

    id: str
    status: ItemStatus
    content: list[ReasoningTextPart]
    summary: list[Any] = []
    encrypted_content: None = None


OutputItem = OutputMessage | FunctionCallItem | ReasoningItem


class InputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Where input tokens came from."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0
    """Writing to the cache costs nothing here and is not counted."""


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What output tokens were spent on."""

    reasoning_tokens: int = 0


class ResponsesUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that a request used."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()


class ResponsesError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/responses; its events carry it, too, as far as it has come."""

    id: str
    created_at: int
    model: str
    status: ResponseStatus
    output: list[OutputItem]
    parallel_tool_calls: bool
    temperature: float | None
    top_p: float | None
    tool_choice: str | ResponsesToolChoice
    tools: list[ResponsesTool]
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = {}
    reasoning: ReasoningConfig = ReasoningConfig()
    text: TextConfig = TextConfig(format=TextFormat(type="text"))
    top_logprobs: int = 0
    usage: ResponsesUsage | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    error: ResponsesError | None = None
    incomplete_details: IncompleteDetails | None = None
    object: Literal["response"] = "response"
    store: Literal[False] = False
    background: Literal[False] = False
    previous_response_id: None = None
    service_tier: Literal["default"] = "default"
    truncation: Literal["disabled"] = "disabled"


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every event has."""

    sequence_number: int


class ResponseCreated(_Event, frozen=True, kw_only=True, tag="response.created"):
    """The first event."""

    response: ResponseObject


class ResponseInProgress(_Event, frozen=True, kw_only=True, tag="response.in_progress"):
    """The second."""

    response: ResponseObject


class ResponseCompleted(_Event, frozen=True, kw_only=True, tag="response.completed"):
    """The last event of an answer that came to its end."""

    response: ResponseObject


class ResponseIncomplete(_Event, frozen=True, kw_only=True, tag="response.incomplete"):
    """The last event of one that was cut at max_output_tokens."""

    response: ResponseObject


class ResponseFailed(_Event, frozen=True, kw_only=True, tag="response.failed"):
    """The last event of one that broke."""

    response: ResponseObject


class OutputItemAdded(_Event, frozen=True, kw_only=True, tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: OutputItem


class OutputItemDone(_Event, frozen=True, kw_only=True, tag="response.output_item.done"):
    """An item is complete."""

    output_index: int
    item: OutputItem


class _InItem(_Event, frozen=True, kw_only=True):
    """An event inside an item."""

    output_index: int
    item_id: str


class ContentPartAdded(_InItem, frozen=True, kw_only=True, tag="response.content_part.added"):
    """A part of a message or of reasoning begins."""

    content_index: int
    part: OutputText | ReasoningTextPart


class ContentPartDone(_InItem, frozen=True, kw_only=True, tag="response.content_part.done"):
    """The part is complete."""

    content_index: int
    part: OutputText | ReasoningTextPart


class OutputTextDelta(_InItem, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """More text."""

    content_index: int
    delta: str
    logprobs: list[TokenLogprob] = []


class OutputTextDone(_InItem, frozen=True, kw_only=True, tag="response.output_text.done"):
    """The whole text of a part."""

    content_index: int
    text: str
    logprobs: list[TokenLogprob] = []


class ReasoningTextDelta(_InItem, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    """More reasoning."""

    content_index: int
    delta: str


class ReasoningTextDone(_InItem, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    """The whole reasoning of an item."""

    content_index: int
    text: str


class FunctionCallArgumentsDelta(_InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class FunctionCallArgumentsDone(_InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """All of them."""

    arguments: str
    name: str


class ResponsesErrorEvent(_Event, frozen=True, kw_only=True, tag="error"):
    """A stream broke on its way; the router, which knows no response, ends it with this."""

    code: str | None
    message: str
    param: str | None = None


ResponsesEvent = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | FunctionCallArgumentsDelta
    | FunctionCallArgumentsDone
    | ResponsesErrorEvent
)
