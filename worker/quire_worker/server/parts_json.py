"""Parts of a message as a chat's JSON: whole messages and deltas."""

from collections.abc import Sequence

from msgspec import UNSET

from quire_contract.openai.responses import (
    CalledFunction,
    ChatDelta,
    FunctionDelta,
    ResponseMessage,
    ResponseToolCall,
    ToolCallDelta,
)
from quire_worker.server.parts import ContentText, Part, ReasoningText, ToolArguments, ToolCallBegin


def delta_of(part: Part) -> ChatDelta:
    """What a part adds to a message. Reasoning goes out under both names that clients read."""
    match part:
        case ContentText(text):
            return ChatDelta(content=text)
        case ReasoningText(text):
            return ChatDelta(reasoning=text, reasoning_content=text)
        case ToolCallBegin(index, call_id, name):
            function = FunctionDelta(name=name, arguments="")
            return ChatDelta(tool_calls=[ToolCallDelta(index=index, id=call_id, type="function", function=function)])
        case ToolArguments(index, text):
            return ChatDelta(tool_calls=[ToolCallDelta(index=index, function=FunctionDelta(arguments=text))])


def message_of(parts: Sequence[Part]) -> ResponseMessage:
    """All parts of a message, put together."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[tuple[ToolCallBegin, list[str]]] = []
    for part in parts:
        match part:
            case ContentText(text):
                content.append(text)
            case ReasoningText(text):
                reasoning.append(text)
            case ToolCallBegin():
                calls.append((part, []))
            case ToolArguments(index, text):
                calls[index][1].append(text)
    thought = "".join(reasoning) or UNSET
    return ResponseMessage(
        content="".join(content) or (None if calls else ""),
        tool_calls=[_call(begin, "".join(pieces)) for begin, pieces in calls] or UNSET,
        reasoning=thought,
        reasoning_content=thought,
    )


def _call(begin: ToolCallBegin, arguments: str) -> ResponseToolCall:
    return ResponseToolCall(id=begin.id, function=CalledFunction(name=begin.name, arguments=arguments))
