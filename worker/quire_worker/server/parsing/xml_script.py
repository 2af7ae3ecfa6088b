"""How Qwen3-Coder's calls are read: arguments are not JSON but tagged text, and their types come from the function's schema.

<tool_call>
<function=name>
<parameter=key>
text
</parameter>
</function>
</tool_call>
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from quire_worker.server.parsing.call_object import Outcome
from quire_worker.server.parsing.feed import Feed, Step
from quire_worker.server.parsing.json_text import escaped
from quire_worker.server.parsing.parts_sink import PartsSink
from quire_worker.server.parsing.scripts import MAX_NAME_CHARS, TOOL_CALL, TOOL_CALL_END, content_until

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def qwen3_coder(feed: Feed, sink: PartsSink, schemas: Mapping[str, Mapping[str, Any]]) -> Step[None]:
    """`schemas` are the functions' parameters by name; what they do not say is text."""
    while marker := (yield from content_until(feed, sink, TOOL_CALL, FUNCTION)):
        outcome: Outcome = "done"
        while outcome == "done":
            if marker != FUNCTION:
                yield from feed.spaces()
                marker = yield from feed.literal(FUNCTION, TOOL_CALL_END)
            if marker != FUNCTION:
                if marker:
                    feed.forget()
                break
            outcome = yield from _call(feed, sink, schemas)
            marker = ""
        sink.content(feed.kept())


def _call(feed: Feed, sink: PartsSink, schemas: Mapping[str, Mapping[str, Any]]) -> Step[Outcome]:
    name = yield from feed.text_until(">", "\n", limit=MAX_NAME_CHARS)
    if not name or not (yield from feed.literal(">")):
        return "none"
    feed.forget()
    sink.begin(name)
    types = _types(schemas.get(name, {}))
    separator = "{"
    while True:
        yield from feed.spaces()
        marker = yield from feed.literal(PARAMETER, FUNCTION_END, TOOL_CALL_END)
        if marker != PARAMETER:
            break
        key = yield from feed.text_until(">", "\n", limit=MAX_NAME_CHARS)
        if not key or not (yield from feed.literal(">")):
            return "broken"
        sink.arguments(f'{separator}"{escaped(key)}": ')
        if not (yield from _value(feed, sink, types.get(key, {"string"}))):
            return "broken"
        separator = ", "
    if not marker:
        return "broken"
    sink.arguments("{}" if separator == "{" else "}")
    sink.end()
    feed.keep()
    return "done"


def _value(feed: Feed, sink: PartsSink, types: set[str]) -> Step[bool]:
    """One parameter's text as JSON: strings as they come, others when they are whole. False if the text ends first."""
    yield from feed.literal("\r\n", "\n")
    streams = types == {"string"}
    pieces: list[str] = []
    if streams:
        sink.arguments('"')
    while True:
        text = yield from feed.run("\r\n" + PARAMETER_END, "\n" + PARAMETER_END, PARAMETER_END)
        if not text:
            break
        if streams:
            sink.arguments(escaped(text))
        else:
            pieces.append(text)
    yield from feed.literal("\r\n", "\n")
    if not (yield from feed.literal(PARAMETER_END)):
        return False
    sink.arguments('"' if streams else _json_of("".join(pieces), types))
    return True


def _types(schema: Mapping[str, Any]) -> dict[str, set[str]]:
    """What each parameter may be, as names of JSON's types."""
    properties = schema.get("properties")
    return {key: types_of(value) for key, value in properties.items()} if isinstance(properties, dict) else {}


def types_of(schema: Any) -> set[str]:
    if not isinstance(schema, dict):
        return {"string"}
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return {kinds}
    if isinstance(kinds, list):
        return {str(kind) for kind in kinds}
    options = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(options, list):
        return set().union(*map(types_of, options))
    values = schema.get("enum")
    if isinstance(values, list) and not any(isinstance(value, str) for value in values):
        return {"number"}
    return {"object"} if "$ref" in schema or "properties" in schema else {"string"}


def _json_of(text: str, types: set[str]) -> str:
    """The text as the JSON it is meant to be. Where a string is possible only null is anything else."""
    bare = text.strip()
    word = _PYTHON_WORDS.get(bare, bare)
    if "string" in types and not (word == "null" and "null" in types):
        return f'"{escaped(text)}"'
    try:
        msgspec.json.decode(word)
    except (msgspec.DecodeError, RecursionError):
        return f'"{escaped(text)}"'
    return word
