"""From the body of POST /v1/responses to the chat request that it means, or to a 400 that names the place.

instructions              -> a system message
message                   -> a message
reasoning                 -> the reasoning of the assistant's message that follows
function_call, ...        -> the tool calls of one assistant message
function_call_output      -> a tool's message
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from quire_contract.openai import validation
from quire_contract.openai.chat_shaped import (
    ChatCheck,
    OwnNames,
    check_num_parts,
    make_chat,
    shared_fields,
    under_own_names,
)
from quire_contract.openai.decode import DEFAULT_LIMITS, decode_fields, decode_struct
from quire_contract.openai.errors import CODE_INVALID_TYPE, CODE_MISSING, CODE_UNSUPPORTED, ApiError, invalid
from quire_contract.openai.limits import Limits
from quire_contract.openai.messages import ChatMessage, ContentPart, FunctionCall, ToolCall
from quire_contract.openai.requests import ChatCompletionRequest
from quire_contract.openai.responses_requests import (
    InputItem,
    InputPart,
    ResponsesRequest,
    ResponsesTool,
    ResponsesToolChoice,
    TextFormat,
)
from quire_contract.openai.unsupported import Unsupported, refuse_named, refuse_unsupported

NAMES = OwnNames(
    {
        "messages": "input",
        "max_completion_tokens": "max_output_tokens",
        "max_tokens": "max_output_tokens",
        "response_format.json_schema": "text.format",
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
    },
    tool_parameters="parameters",
)
SHARED = shared_fields(ResponsesRequest.__struct_fields__)
"""A chat's fields that a response takes under the same names."""
INCLUDE_LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = frozenset(
    {
        INCLUDE_LOGPROBS,
        "reasoning.encrypted_content",
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    }
)
"""All that OpenAI's clients may ask for. Only the first is ever there: reasoning is plain text here, and nothing else can occur."""
_STATELESS = "nothing is stored on this server; send the whole conversation in input"
_ROLES = frozenset({"user", "assistant", "system", "developer"})
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})
_MAX_METADATA, _MAX_METADATA_KEY, _MAX_METADATA_VALUE = 16, 64, 512

REFUSED: Mapping[str, Unsupported] = {
    "previous_response_id": Unsupported(_STATELESS),
    "conversation": Unsupported(_STATELESS),
    "background": Unsupported("nothing is stored on this server, so no answer can be fetched later", lambda x: not x),
    "prompt": Unsupported("prompt templates are stored on OpenAI's servers only; send input"),
    "context_management": Unsupported("is not supported; shorten input", lambda x: not x),
    "moderation": Unsupported("is not supported"),
    "messages": Unsupported("is a field of chats; send input"),
    "max_tokens": Unsupported("is a field of chats; send max_output_tokens"),
    "max_completion_tokens": Unsupported("is a field of chats; send max_output_tokens"),
    "n": Unsupported("a response is one answer; send several requests, or use /v1/chat/completions", lambda x: x == 1),
    "logprobs": Unsupported(f"send include: [{INCLUDE_LOGPROBS!r}] and top_logprobs", lambda x: x is False),
    "response_format": Unsupported("is a field of chats; send text.format"),
    "reasoning_effort": Unsupported("is a field of chats; send reasoning.effort"),
}
"""Fields that would change the answer and that a response cannot have, with what to do instead."""


def decode_responses(
    body: bytes, limits: Limits = DEFAULT_LIMITS, check: ChatCheck = validation.check_chat
) -> tuple[ResponsesRequest, ChatCompletionRequest]:
    """The checked body, and the chat that it means. ApiError 400 (413 for a body over the limit) in the body's own names."""
    fields = decode_fields(body, limits)
    refuse_named(fields, REFUSED)
    refuse_unsupported(fields, SHARED.union(ResponsesRequest.__struct_fields__))
    request = decode_struct(ResponsesRequest, body)
    _check_own(request)
    try:
        chat = make_chat(fields, SHARED, _values(request), _messages(request, limits))
        check(chat, limits)
    except ApiError as error:
        raise under_own_names(error, NAMES) from None
    return request, chat


def wants_logprobs(request: ResponsesRequest) -> bool:
    """Whether the answer shows log-probabilities."""
    return INCLUDE_LOGPROBS in (request.include or ()) or (request.top_logprobs or 0) > 0


def _check_own(request: ResponsesRequest) -> None:
    for index, name in enumerate(request.include or ()):
        if name not in INCLUDABLE:
            raise invalid(f"include[{index}]", f"{name[:100]!r} is not one of {', '.join(sorted(INCLUDABLE))}")
    if request.truncation not in (None, "auto", "disabled"):
        raise invalid("truncation", f"{request.truncation[:100]!r} is not one of auto, disabled")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "needs stream: true")
    metadata = request.metadata or {}
    if len(metadata) > _MAX_METADATA:
        raise invalid("metadata", f"has {len(metadata)} entries; at most {_MAX_METADATA} are allowed")
    for key, value in metadata.items():
        if len(key) > _MAX_METADATA_KEY or len(value) > _MAX_METADATA_VALUE:
            most = f"keys have at most {_MAX_METADATA_KEY} characters, values {_MAX_METADATA_VALUE}"
            raise invalid(f"metadata[{key[:_MAX_METADATA_KEY]!r}]", f"is too long; {most}")


def _values(request: ResponsesRequest) -> dict[str, Any]:
    """The body's own fields as a chat has them."""
    logprobs = wants_logprobs(request)
    choice, tools = _tool_choice(request)
    return {
        "model": request.model,
        "stream": request.stream,
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "logprobs": True if logprobs else None,
        "top_logprobs": request.top_logprobs if logprobs else None,
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": _response_format(request),
        "reasoning_effort": None if request.reasoning is None else request.reasoning.effort,
        "user": request.user,
    }


def _response_format(request: ResponsesRequest) -> dict[str, Any] | None:
    text_format = None if request.text is None else request.text.format
    if text_format is None or text_format.type == "text":
        return None
    if text_format.type == "json_object":
        return {"type": "json_object"}
    if text_format.type != "json_schema":
        known = "text, json_object, json_schema"
        raise invalid("text.format.type", f"{text_format.type[:100]!r} is not one of {known}")
    return {"type": "json_schema", "json_schema": _json_schema(text_format)}


def _json_schema(text_format: TextFormat) -> dict[str, Any]:
    for name in ("name", "schema"):
        if getattr(text_format, name) is None:
            raise invalid(f"text.format.{name}", "is required for a json_schema", CODE_MISSING)
    given = {name: getattr(text_format, name) for name in ("name", "schema", "strict", "description")}
    return {name: value for name, value in given.items() if value is not None}


def _tool_choice(request: ResponsesRequest) -> tuple[Any, list[dict[str, Any]]]:
    """The choice in a chat's form, and the tools it leaves."""
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or ())]
    choice = request.tool_choice
    if not isinstance(choice, ResponsesToolChoice):
        says_nothing = not tools and choice in ("auto", "none")  # clients send it with every request
        return None if says_nothing else choice, tools
    if choice.type == "function":
        if choice.name is None:
            raise invalid("tool_choice.name", "is required for a function", CODE_MISSING)
        return {"type": "function", "function": {"name": choice.name}}, tools
    if choice.type != "allowed_tools":
        raise invalid(
            "tool_choice.type",
            f"{choice.type[:100]!r} is not supported; this server has functions only",
            CODE_UNSUPPORTED,
        )
    allowed = {tool.name for tool in choice.tools or ()}
    left = [tool for tool in tools if tool["function"]["name"] in allowed]
    if not left:
        raise invalid("tool_choice.tools", "names none of tools")
    if choice.mode not in ("auto", "required"):
        raise invalid("tool_choice.mode", "must be auto or required")
    return choice.mode, left


def _tool(tool: ResponsesTool, path: str) -> dict[str, Any]:
    if tool.type != "function":
        message = (
            f"{tool.type[:100]!r} runs on OpenAI's servers and is not supported; define a function and run it yourself"
        )
        raise invalid(f"{path}.type", message, CODE_UNSUPPORTED)
    if tool.name is None:
        raise invalid(f"{path}.name", "is required", CODE_MISSING)
    given = {name: getattr(tool, name) for name in ("name", "description", "parameters", "strict")}
    return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}


def _messages(request: ResponsesRequest, limits: Limits) -> list[ChatMessage]:
    items = [InputItem(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    if not items:
        raise invalid("input", "must hold at least one item")
    if len(items) > limits.max_messages:
        raise invalid("input", f"has {len(items)} entries; at most {limits.max_messages} are allowed")
    check_num_parts("input", (item.content for item in items), limits)
    check_num_parts("input", (item.output for item in items), limits)
    talk = _Conversation()
    for index, item in enumerate(items):
        talk.add(item, f"input[{index}]")
    return _with_instructions(talk.messages(), request.instructions)


def _with_instructions(messages: list[ChatMessage], instructions: str | None) -> list[ChatMessage]:
    """Instructions come first. They share one message with a system message that opens the input: many templates know only one."""
    if instructions is None:
        return messages
    own = ContentPart(type="text", text=instructions)
    if messages and messages[0].role in ("system", "developer"):
        first = messages[0]
        content = (
            [ContentPart(type="text", text=first.content)] if isinstance(first.content, str) else first.content or []
        )
        return [msgspec.structs.replace(first, content=[own, *content]), *messages[1:]]
    return [ChatMessage(role="system", content=instructions), *messages]


class _Conversation:
    """Gathers what one turn of the assistant is spread over: reasoning, text and calls are items of their own in a response's input."""

    def __init__(self) -> None:
        self._done: list[ChatMessage] = []
        self._reasoning: list[str] = []
        self._content: str | list[ContentPart] | None = None
        self._calls: list[ToolCall] = []

    def add(self, item: InputItem, path: str) -> None:
        match item.type or "message":
            case "message":
                self._add_message(item, path)
            case "function_call":
                self._add_call(item, path)
            case "function_call_output":
                self._add_output(item, path)
            case "reasoning":
                self._add_reasoning(item, path)
            case "item_reference":
                raise invalid(f"{path}.type", f"'item_reference': {_STATELESS}", CODE_UNSUPPORTED)
            case other:
                raise invalid(f"{path}.type", f"{other[:100]!r} is not supported", CODE_UNSUPPORTED)

    def messages(self) -> list[ChatMessage]:
        """All of them."""
        self._end_turn()
        return self._done

    def _add_message(self, item: InputItem, path: str) -> None:
        if item.role not in _ROLES:
            problem = (
                "is required" if item.role is None else f"{item.role[:100]!r} is not one of {', '.join(sorted(_ROLES))}"
            )
            raise invalid(f"{path}.role", problem)
        if item.content is None:
            raise invalid(f"{path}.content", "is required", CODE_MISSING)
        content = _content(item.content, f"{path}.content")
        if item.role != "assistant":
            self._end_turn()
            self._done.append(ChatMessage(role=item.role, content=content))
            return
        if self._content is not None or self._calls:
            self._end_turn()
        self._content = content

    def _add_call(self, item: InputItem, path: str) -> None:
        for name in ("call_id", "name", "arguments"):
            if getattr(item, name) is None:
                raise invalid(f"{path}.{name}", "is required for a function_call", CODE_MISSING)
        function = FunctionCall(name=item.name or "", arguments=item.arguments or "")
        self._calls.append(ToolCall(id=item.call_id, function=function))

    def _add_output(self, item: InputItem, path: str) -> None:
        for name in ("call_id", "output"):
            if getattr(item, name) is None:
                raise invalid(f"{path}.{name}", "is required for a function_call_output", CODE_MISSING)
        self._end_turn()
        content = _content(item.output or "", f"{path}.output")
        self._done.append(ChatMessage(role="tool", tool_call_id=item.call_id, content=content))

    def _add_reasoning(self, item: InputItem, path: str) -> None:
        """The text that a model can read; without any (encrypted elsewhere) there is nothing to pass on."""
        if self._content is not None or self._calls:
            self._end_turn()
        shown = item.content if item.content else item.summary or ""
        self._reasoning.extend(part.text or "" for part in _parts(shown, f"{path}.content"))

    def _end_turn(self) -> None:
        if self._content is None and not self._calls and not self._reasoning:
            return
        reasoning = "\n".join(self._reasoning) if self._reasoning else None
        self._done.append(
            ChatMessage(
                role="assistant", content=self._content, tool_calls=self._calls or None, reasoning_content=reasoning
            )
        )
        self._reasoning, self._content, self._calls = [], None, []


def _content(content: str | list[InputPart], path: str) -> str | list[ContentPart]:
    return content if isinstance(content, str) else _parts(content, path)


def _parts(content: str | list[InputPart], path: str) -> list[ContentPart]:
    if isinstance(content, str):
        return [ContentPart(type="text", text=content)] if content else []
    return [_part(part, f"{path}[{index}]") for index, part in enumerate(content)]


def _part(part: InputPart, path: str) -> ContentPart:
    if part.type == "refusal":
        return ContentPart(type="text", text=part.refusal or "")
    if part.type not in _TEXT_PARTS:
        raise invalid(f"{path}.type", f"{part.type[:100]!r} is not supported; this model reads text", CODE_UNSUPPORTED)
    if part.text is None:
        raise invalid(f"{path}.text", "is required for a text part", CODE_INVALID_TYPE)
    return ContentPart(type="text", text=part.text)
