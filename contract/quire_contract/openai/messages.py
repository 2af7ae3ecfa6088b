"""The messages of a chat, as clients send them and as chat templates see them.

Text parts are joined, tool-call arguments become objects (templates print them with `tojson`), null content becomes "".
"""

from typing import Any

import msgspec

from quire_contract.openai.errors import CODE_INVALID_TYPE, CODE_UNSUPPORTED, invalid

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a message's content."""

    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the assistant called earlier in the conversation."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call of an earlier assistant message."""

    function: FunctionCall
    id: str | None = None
    type: str = "function"


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message. Other fields are ignored."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    audio: msgspec.Raw | None = None


def check_message(message: ChatMessage, path: str) -> None:
    """400 for a role or content that no template here can take. `path` is like "messages[3]"."""
    if message.role not in ROLES:
        raise invalid(f"{path}.role", f"{message.role[:100]!r} is not one of {', '.join(sorted(ROLES))}")
    if isinstance(message.content, list):
        for index, part in enumerate(message.content):
            _check_part(part, f"{path}.content[{index}]")
    elif message.content is None and message.role in ("system", "developer", "user"):
        raise invalid(f"{path}.content", f"is required for role {message.role!r}")
    if message.audio is not None and bytes(message.audio) != b"null":
        raise invalid(f"{path}.audio", "audio is not supported", CODE_UNSUPPORTED)


def _check_part(part: ContentPart, path: str) -> None:
    if part.type != "text":
        raise invalid(f"{path}.type", f"{part.type[:100]!r} is not supported; this model reads text", CODE_UNSUPPORTED)
    if part.text is None:
        raise invalid(f"{path}.text", "is required for a text part", CODE_INVALID_TYPE)


def template_message(message: ChatMessage) -> dict[str, Any]:
    """The message as a chat template sees it: only what is there."""
    content = message.content
    seen: dict[str, Any] = {"role": message.role, "content": content if type(content) is str else _text(content)}
    if message.name is not None:
        seen["name"] = message.name
    if message.tool_call_id is not None:
        seen["tool_call_id"] = message.tool_call_id
    reasoning = message.reasoning if message.reasoning_content is None else message.reasoning_content
    if reasoning is not None:  # templates read the one or the other
        seen["reasoning_content"] = seen["thinking"] = reasoning
    if message.tool_calls:
        seen["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return seen


def _text(content: str | list[ContentPart] | None) -> str:
    if isinstance(content, list):
        return "\n".join(part.text or "" for part in content)
    return content or ""


def _template_call(call: ToolCall) -> dict[str, Any]:
    arguments = call.function.arguments
    if isinstance(arguments, str):
        arguments = _arguments_object(arguments)
    seen: dict[str, Any] = {"type": call.type, "function": {"name": call.function.name, "arguments": arguments}}
    return seen if call.id is None else {"id": call.id, **seen}


def _arguments_object(text: str) -> Any:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text  # a model may have written broken JSON; the history must still be readable to it
    return value if isinstance(value, dict) else text
