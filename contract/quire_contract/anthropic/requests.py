"""The bodies of POST /v1/messages and /v1/messages/count_tokens. Every field may be null, which means absent.

`chat` turns them into chat requests; what a field may hold is checked there, too. Beside these fields the body may have those of
`chat_shaped.SHARED_FIELDS`. `cache_control` is ignored wherever it stands: prefixes are cached without being asked.
"""

from typing import Any

import msgspec


class ResultPart(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a tool's result."""

    type: str
    text: str | None = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One block of a message: text, tool_use, tool_result, thinking or redacted_thinking. Other fields are ignored."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[ResultPart] | None = None
    is_error: bool | None = None


class InputMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message."""

    role: str
    content: str | list[Block]


class SystemBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One block of the system prompt."""

    type: str
    text: str


class MessagesTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the client runs."""

    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None


class MessagesToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """auto, any, tool or none."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """enabled, adaptive, between_tools or disabled."""

    type: str
    budget_tokens: int | None = None


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """json_schema."""

    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the text must be, and how hard the model should try."""

    format: OutputFormat | None = None
    effort: str | None = None


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks."""

    user_id: str | None = None


class CountTokensRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/messages/count_tokens."""

    model: str
    messages: list[InputMessage]
    system: str | list[SystemBlock] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest, frozen=True, kw_only=True):
    """Body of POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
