"""Reads whole texts and texts in pieces with the parsers that answers use."""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytest

from quire_contract.openai.tools import Function
from quire_worker.server.parsing import scripts
from quire_worker.server.parsing.feed import Feed
from quire_worker.server.parsing.formats import FORMATS
from quire_worker.server.parsing.message_parser import ScriptParser, Steps
from quire_worker.server.parsing.parts_sink import PartsSink
from quire_worker.server.parsing.scripts import plain
from quire_worker.server.parsing.think_script import ThinkTags, think
from quire_worker.server.parts import ContentText, Part, ReasoningText, ToolArguments, ToolCallBegin

WEATHER = Function(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "where": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["city"],
    },
    strict=False,
)
CLOCK = Function(name="clock", parameters={"type": "object", "properties": {}}, strict=False)
FUNCTIONS = (WEATHER, CLOCK)


class Call(NamedTuple):
    name: str
    arguments: str


class Message(NamedTuple):
    """Parts put together, as clients do."""

    content: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    is_whole: bool = False
    """Calls are complete."""


class Reader:
    """One format's parsers."""

    def __init__(self, name: str | None, tags: ThinkTags | None = None, *, opened: bool = False, **sink: Any) -> None:
        self._name, self._tags, self._opened, self._sink = name, tags, opened, sink

    def parser(self) -> ScriptParser:
        script = plain if self._name is None else FORMATS[self._name].script(FUNCTIONS)
        tags = self._tags
        if tags is not None:
            script = Steps(lambda feed, sink: think(feed, sink, tags, opened=self._opened), script)
        ids = map(str, itertools.count())
        sink = PartsSink(lambda: next(ids), **{"calls_tools": self._name is not None, **self._sink})
        return ScriptParser(script, Feed(), sink)

    def parts(self, pieces: Iterable[str]) -> tuple[list[Part], ScriptParser]:
        """All parts, neighbours of one kind joined."""
        parser = self.parser()
        found: list[Part] = []
        for piece in pieces:
            found.extend(parser.push(piece))
        return joined([*found, *parser.finish()]), parser

    def __call__(self, *pieces: str) -> Message:
        parts, parser = self.parts(pieces)
        return message(parts, parser)


def joined(parts: Sequence[Part]) -> list[Part]:
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, ContentText) and isinstance(last, ContentText):
            result[-1] = ContentText(last.text + part.text)
        elif isinstance(part, ReasoningText) and isinstance(last, ReasoningText):
            result[-1] = ReasoningText(last.text + part.text)
        elif isinstance(part, ToolArguments) and isinstance(last, ToolArguments) and part.index == last.index:
            result[-1] = ToolArguments(index=part.index, text=last.text + part.text)
        else:
            result.append(part)
    return result


def message(parts: Sequence[Part], parser: ScriptParser) -> Message:
    content = reasoning = ""
    calls: list[Call] = []
    for part in parts:
        match part:
            case ContentText(text):
                content += text
            case ReasoningText(text):
                reasoning += text
            case ToolCallBegin(index, _, name):
                assert index == len(calls), "indices count up"
                calls.append(Call(name, ""))
            case ToolArguments(index, text):
                calls[index] = Call(calls[index].name, calls[index].arguments + text)
    return Message(content, tuple(calls), reasoning, parser.calls_are_whole)


def valid_message(name: str, calls: list[tuple[str, dict[str, Any]]], text: str) -> str:
    """What a model of this format writes."""
    if name == "hermes":
        return text + "\n".join(
            f'<tool_call>\n{{"name": "{n}", "arguments": {json.dumps(a, ensure_ascii=False)}}}\n</tool_call>'
            for n, a in calls
        )
    if name == "llama3_json":
        return "; ".join(f'{{"name": "{n}", "parameters": {json.dumps(a, ensure_ascii=False)}}}' for n, a in calls)
    if name == "mistral_v3":
        return f"{text}[TOOL_CALLS]" + json.dumps([{"name": n, "arguments": a} for n, a in calls], ensure_ascii=False)
    if name == "mistral_v11":
        return text + "".join(f"[TOOL_CALLS]{n}[ARGS]{json.dumps(a, ensure_ascii=False)}" for n, a in calls)
    begin, end, one = scripts.CALLS_BEGIN, scripts.CALLS_END, scripts.CALL_BEGIN
    done, sep = scripts.CALL_END, scripts.SEP
    if name == "deepseek_v3":
        inner = "\n".join(
            f"{one}function{sep}{n}\n```json\n{json.dumps(a, ensure_ascii=False)}\n```{done}" for n, a in calls
        )
        return f"{text}{begin}{inner}{end}"
    if name == "deepseek_v31":
        return (
            f"{text}{begin}"
            + "".join(f"{one}{n}{sep}{json.dumps(a, ensure_ascii=False)}{done}" for n, a in calls)
            + end
        )
    assert name == "qwen3_coder"
    blocks = []
    for n, a in calls:
        inner = "".join(
            f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n</parameter>\n"
            for key, value in a.items()
        )
        blocks.append(f"<tool_call>\n<function={n}>\n{inner}</function>\n</tool_call>")
    return text + "\n".join(blocks)


@pytest.fixture(scope="session")
def written() -> Callable[[str, list[tuple[str, dict[str, Any]]], str], str]:
    """What a model writes that calls functions after saying something."""
    return valid_message


@pytest.fixture(scope="session")
def reader() -> type[Reader]:
    return Reader
