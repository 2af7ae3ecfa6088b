"""From the bodies of /v1/messages and /v1/messages/count_tokens to the chat request that they mean, or to a 400 that names the place.

system                     -> a system message
user: text, tool_result    -> user messages and tool messages, in this order
assistant: thinking, text, tool_use  -> one message with reasoning, text and tool calls
assistant at the end       -> the answer goes on in it
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quire_contract.anthropic.requests import (
    Block,
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    MessagesTool,
    ResultPart,
    SystemBlock,
)
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
from quire_contract.openai.unsupported import Unsupported, refuse_named, refuse_unsupported

NAMES = OwnNames(
    {
        "max_completion_tokens": "max_tokens",
        "stop": "stop_sequences",
        "response_format.json_schema": "output_config.format",
        "response_format": "output_config.format",
        "reasoning_effort": "output_config.effort",
        "user": "metadata.user_id",
    },
    tool_parameters="input_schema",
)
SHARED = shared_fields((*MessagesRequest.__struct_fields__, "stop"))
"""A chat's fields that a message takes under the same names."""
_TRUNCATION = "truncate_prompt_tokens"
SHARED_BY_COUNTING = SHARED & {"chat_template_kwargs", _TRUNCATION}
"""Those of them that change the prompt."""
_THINKING = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"xhigh": "high", "max": "high"}
"""Efforts that a chat does not know, as the nearest that it does."""

REFUSED: Mapping[str, Unsupported] = {
    "stop": Unsupported("is a field of chats; send stop_sequences"),
    "n": Unsupported("a message is one answer; send several requests, or use /v1/chat/completions", lambda x: x == 1),
    "max_completion_tokens": Unsupported("is a field of chats; send max_tokens"),
    "response_format": Unsupported("is a field of chats; send output_config.format"),
    "logprobs": Unsupported("messages have none; use /v1/chat/completions", lambda x: x is False),
    "top_logprobs": Unsupported("messages have none; use /v1/chat/completions", lambda x: x == 0),
    "container": Unsupported("code execution runs on Anthropic's servers only"),
    "mcp_servers": Unsupported("is not supported; run the tools yourself", lambda x: not x),
    "context_management": Unsupported("is not supported; shorten messages", lambda x: not x),
}
"""Fields that would change the answer and that a message cannot have, with what to do instead."""


def decode_messages(
    body: bytes, limits: Limits = DEFAULT_LIMITS, check: ChatCheck = validation.check_chat
) -> tuple[MessagesRequest, ChatCompletionRequest]:
    """The checked body, and the chat that it means. ApiError 400 (413 for a body over the limit) in the body's own names."""
    fields = _fields(body, limits)
    request = decode_struct(MessagesRequest, body)
    budget = None if request.thinking is None else request.thinking.budget_tokens
    if budget is not None and budget < 1:
        raise invalid("thinking.budget_tokens", "must be at least 1")
    values = {
        "stream": request.stream,
        "max_completion_tokens": request.max_tokens,
        "stop": request.stop_sequences,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "user": None if request.metadata is None else request.metadata.user_id,
    }
    return request, _chat(_taken(fields, SHARED), request, values, limits, check)


def decode_count_tokens(body: bytes, limits: Limits = DEFAULT_LIMITS) -> ChatCompletionRequest:
    """The chat whose prompt is to be counted. Fields of /v1/messages that do not change the prompt are ignored. ApiError as above."""
    fields = _fields(body, limits)
    room = {"max_completion_tokens": fields.get("max_tokens")} if _TRUNCATION in fields else {}
    return _chat(_taken(fields, SHARED_BY_COUNTING), decode_struct(CountTokensRequest, body), room, limits)


def _fields(body: bytes, limits: Limits) -> dict[str, msgspec.Raw]:
    fields = decode_fields(body, limits)
    refuse_named(fields, REFUSED)
    refuse_unsupported(fields, SHARED.union(MessagesRequest.__struct_fields__))
    return fields


def _taken(fields: Mapping[str, msgspec.Raw], names: frozenset[str]) -> Mapping[str, msgspec.Raw]:
    return {name: fields[name] for name in names & fields.keys()}


def _chat(
    fields: Mapping[str, msgspec.Raw],
    request: CountTokensRequest,
    values: Mapping[str, Any],
    limits: Limits,
    check: ChatCheck = validation.check_chat,
) -> ChatCompletionRequest:
    try:
        messages, continues = _messages(request, limits)
        chat = make_chat(fields, SHARED, {**_prompt_values(request), **values}, messages)
        if continues:
            chat = msgspec.structs.replace(chat, continue_final_message=True, add_generation_prompt=False)
        if request.thinking is not None:
            chat = msgspec.structs.replace(chat, chat_template_kwargs=_template_kwargs(request.thinking.type, chat))
        check(chat, limits)
    except ApiError as error:
        raise under_own_names(error, NAMES) from None
    return chat


def _template_kwargs(thinking: str, chat: ChatCompletionRequest) -> dict[str, Any]:
    """Whether to think is a question to the template; `enable_thinking` is what templates of reasoning models ask for."""
    if thinking not in _THINKING:
        raise invalid("thinking.type", f"{thinking[:100]!r} is not one of {', '.join(_THINKING)}")
    return {"enable_thinking": _THINKING[thinking], **(chat.chat_template_kwargs or {})}


def _prompt_values(request: CountTokensRequest) -> dict[str, Any]:
    """The fields that both bodies have, as a chat has them."""
    choice = request.tool_choice
    config = request.output_config
    effort = None if config is None else config.effort
    return {
        "model": request.model,
        "tools": [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or ())] or None,
        "tool_choice": _tool_choice(request),
        "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
        "response_format": _response_format(request),
        "reasoning_effort": effort if effort is None else _EFFORTS.get(effort, effort),
    }


def _tool(tool: MessagesTool, path: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        message = (
            f"{tool.type[:100]!r} runs on Anthropic's servers and is not supported; define a tool and run it yourself"
        )
        raise invalid(f"{path}.type", message, CODE_UNSUPPORTED)
    if tool.input_schema is None:
        raise invalid(f"{path}.input_schema", "is required", CODE_MISSING)
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(request: CountTokensRequest) -> Any:
    choice = request.tool_choice
    if choice is None or (choice.type in ("auto", "none") and not request.tools):
        return None
    if choice.type == "tool":
        if choice.name is None:
            raise invalid("tool_choice.name", "is required for a tool", CODE_MISSING)
        return {"type": "function", "function": {"name": choice.name}}
    if choice.type not in _CHOICES:
        raise invalid("tool_choice.type", f"{choice.type[:100]!r} is not one of auto, any, tool, none")
    return _CHOICES[choice.type]


def _response_format(request: CountTokensRequest) -> dict[str, Any] | None:
    wanted = None if request.output_config is None else request.output_config.format
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        raise invalid("output_config.format.type", f"{wanted.type[:100]!r} is not json_schema")
    if wanted.schema is None:
        raise invalid("output_config.format.schema", "is required for a json_schema", CODE_MISSING)
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": wanted.schema, "strict": True}}


def _messages(request: CountTokensRequest, limits: Limits) -> tuple[list[ChatMessage], bool]:
    """The conversation, and whether the answer goes on in its last message."""
    if not request.messages:
        raise invalid("messages", "must hold at least one message")
    if len(request.messages) > limits.max_messages:
        raise invalid("messages", f"has {len(request.messages)} entries; at most {limits.max_messages} are allowed")
    check_num_parts("messages", (message.content for message in request.messages), limits)
    talk: list[_Turn] = []
    if request.system is not None:
        talk.append(_Turn("system", _system_parts(request.system)))
    for index, message in enumerate(request.messages):
        _take(message, f"messages[{index}]", talk)
    made = [turn.message() for turn in talk]
    last = made[-1]
    if last.role != "assistant":
        return made, False
    if not last.content:
        place = f"messages[{len(request.messages) - 1}].content"
        raise invalid(place, "the answer can only go on in text; end with a user's message or a tool's result")
    return made, True


@dataclass(slots=True)
class _Turn:
    """A message that is being gathered."""

    role: str
    parts: list[ContentPart] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    call_id: str | None = None

    def message(self) -> ChatMessage:
        """What was gathered. An assistant's texts are one string, as the answer may have to go on in it."""
        content: str | list[ContentPart] | None = self.parts
        if self.role == "assistant":
            content = "\n".join(part.text or "" for part in self.parts) if self.parts else None
        return ChatMessage(
            role=self.role,
            content=content,
            tool_calls=self.calls or None,
            tool_call_id=self.call_id,
            reasoning_content="\n".join(self.thoughts) if self.thoughts else None,
        )


def _system_parts(system: str | list[SystemBlock]) -> list[ContentPart]:
    if isinstance(system, str):
        return [_text_part(system)]
    for index, block in enumerate(system):
        if block.type != "text":
            raise invalid(f"system[{index}].type", f"{block.type[:100]!r} is not supported", CODE_UNSUPPORTED)
    return [_text_part(block.text) for block in system]


def _take(message: InputMessage, path: str, talk: list[_Turn]) -> None:
    """Add a message to the conversation."""
    role = message.role
    if role not in ("user", "assistant", "system"):
        raise invalid(f"{path}.role", f"{role[:100]!r} is not one of user, assistant, system")
    if isinstance(message.content, str):
        _turn_of(role, talk).parts.append(_text_part(message.content))
    elif role == "assistant":
        turn = _turn_of(role, talk)
        for index, block in enumerate(message.content):
            _take_answer(block, f"{path}.content[{index}]", turn)
    elif not message.content:
        _turn_of(role, talk)
    else:
        for index, block in enumerate(message.content):
            _take_question(role, block, f"{path}.content[{index}]", talk)


def _turn_of(role: str, talk: list[_Turn]) -> _Turn:
    """The turn that a message of this role belongs to: those of one role in a row are one message, as many templates refuse two."""
    if not talk or talk[-1].role != role or (role == "system" and len(talk) == 1):
        talk.append(_Turn(role))
    return talk[-1]


def _take_question(role: str, block: Block, path: str, talk: list[_Turn]) -> None:
    if block.type == "text":
        _turn_of(role, talk).parts.append(_text_part(_required(block.text, f"{path}.text")))
    elif block.type == "tool_result" and role == "user":
        call_id = _required(block.tool_use_id, f"{path}.tool_use_id")
        talk.append(_Turn("tool", _result(block.content, f"{path}.content"), call_id=call_id))
    else:
        raise _unknown_block(block, path)


def _take_answer(block: Block, path: str, turn: _Turn) -> None:
    match block.type:
        case "text":
            turn.parts.append(_text_part(_required(block.text, f"{path}.text")))
        case "thinking":
            turn.thoughts.append(_required(block.thinking, f"{path}.thinking"))
        case "redacted_thinking":
            pass  # encrypted for Anthropic's own models: nobody else can read it
        case "tool_use":
            function = FunctionCall(name=_required(block.name, f"{path}.name"), arguments=block.input or {})
            turn.calls.append(ToolCall(id=_required(block.id, f"{path}.id"), function=function))
        case _:
            raise _unknown_block(block, path)


def _result(content: str | list[ResultPart] | None, path: str) -> list[ContentPart]:
    if content is None or isinstance(content, str):
        return [_text_part(content or "")]
    parts: list[ContentPart] = []
    for index, part in enumerate(content):
        if part.type != "text":
            message = f"{part.type[:100]!r} is not supported; this model reads text"
            raise invalid(f"{path}[{index}].type", message, CODE_UNSUPPORTED)
        parts.append(_text_part(_required(part.text, f"{path}[{index}].text")))
    return parts


def _text_part(text: str) -> ContentPart:
    return ContentPart(type="text", text=text)


def _required(value: str | None, path: str) -> str:
    if value is None:
        raise invalid(path, "is required", CODE_INVALID_TYPE)
    return value


def _unknown_block(block: Block, path: str) -> ApiError:
    message = f"{block.type[:100]!r} is not supported here; this model reads text"
    return invalid(f"{path}.type", message, CODE_UNSUPPORTED)
