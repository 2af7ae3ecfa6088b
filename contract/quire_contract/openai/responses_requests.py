"""The body of POST /v1/responses as clients send it. Every field may be null, which means absent.

`responses_chat` turns it into a chat request; what a field may hold is checked there, too. Beside these fields the body may have those of
`chat_shaped.SHARED_FIELDS`.
"""

from typing import Any

import msgspec


class InputPart(msgspec.Struct, frozen=True, kw_only=True):
    """One part of an item's content: input_text, output_text, refusal, reasoning_text or summary_text."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item of the conversation: message (the default), function_call, function_call_output or reasoning. Other fields are ignored."""

    type: str | None = None
    role: str | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None


class ResponsesTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AllowedTool(msgspec.Struct, frozen=True, kw_only=True):
    """One tool of tool_choice `allowed_tools`."""

    type: str
    name: str | None = None


class ResponsesToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A named function, or the tools that are allowed."""

    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[AllowedTool] | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """text, json_object or json_schema."""

    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the text must be."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the model should reason."""

    effort: str | None = None
    summary: str | None = None


class ResponsesStreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream brings besides events."""

    include_obfuscation: bool | None = None


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/responses."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: str | ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    truncation: str | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
