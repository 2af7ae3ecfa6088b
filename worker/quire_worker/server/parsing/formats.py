"""The formats in which models call tools: how each is read and how it is written, by name.

A new format is a script (`scripts`), a grammar of its calls, and a row in FORMATS.
"""

import dataclasses
import hashlib
import itertools
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire_contract.openai.tools import Function
from quire_worker.server.parsing import scripts, xml_script
from quire_worker.server.parsing.lark import Lark, quoted
from quire_worker.server.parsing.message_parser import Script

_MAX_COUNTED = 4096
"""Longer texts are not counted: a grammar that counts is as large as its numbers."""
_ALPHABET = string.ascii_letters + string.digits


def openai_id(noise: bytes = b"") -> str:
    """As OpenAI's ids look, of 16 bytes of noise or more; without any it is random."""
    return f"call_{(noise or secrets.token_bytes(16))[:12].hex()}"


def mistral_id(noise: bytes = b"") -> str:
    """Nine letters and digits: Mistral's templates refuse a conversation with any other."""
    number, letters = int.from_bytes((noise or secrets.token_bytes(16))[:16], "big"), ""
    for _ in range(9):
        number, place = divmod(number, len(_ALPHABET))
        letters += _ALPHABET[place]
    return letters


def call_ids(new_id: Callable[[bytes], str], stem: str) -> Callable[[], str]:
    """Makes the ids of one choice's calls, one after the other: always the same ones for a `stem`, so that whoever takes over the choice
    names its calls alike. The stem must tell nobody anything and be nobody else's; without one they are random."""
    numbers = itertools.count()
    return lambda: new_id(hashlib.sha256(f"{stem}/{next(numbers)}".encode()).digest() if stem else b"")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallGrammar:
    """How calls are written: `opening` marker, then `rest`, an expression of Lark."""

    opening: str | None
    """What a text cannot hold that is no call. None: calls stand at the start, and text cannot begin like them."""
    rest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One format."""

    name: str
    markers: tuple[str, ...]
    """Of which some are special tokens in a model's vocabulary. The first opens calls."""
    script: Callable[[Sequence[Function]], Script]
    """Reads the calls of these functions."""
    grammar: Callable[[Lark, Sequence[Function], bool], CallGrammar]
    """Writes one call of these functions or, with True, one or more."""
    new_id: Callable[[bytes], str] = openai_id


def _arguments(lark: Lark, function: Function) -> str:
    return lark.schema({**function.parameters, "type": "object"}, lenient=not function.strict)


def _objects(lark: Lark, functions: Sequence[Function], key: str) -> str:
    """`{"name": …, "arguments": {…}}` of one of the functions."""
    options = (
        f"{quoted(chr(34) + function.name + chr(34) + f', {chr(34)}{key}{chr(34)}: ')} {_arguments(lark, function)}"
        for function in functions
    )
    return lark.rule(f'"{{\\"name\\": " ({" | ".join(options)}) "}}"')


def _repeated(item: str, separator: str, parallel: bool) -> str:
    return f"{item} ({separator} {item})*" if parallel else item


def _hermes_grammar(lark: Lark, functions: Sequence[Function], parallel: bool) -> CallGrammar:
    opening, closing = lark.marker(scripts.TOOL_CALL), lark.marker(scripts.TOOL_CALL_END)
    body = lark.rule(f'"\\n" {_objects(lark, functions, "arguments")} "\\n" {closing}')
    return CallGrammar(opening=scripts.TOOL_CALL, rest=_repeated(body, f'"\\n" {opening}', parallel))


def _llama3_grammar(lark: Lark, functions: Sequence[Function], parallel: bool) -> CallGrammar:
    """Calls are JSON from their first character on, so that llguidance can tell them from content that is JSON, too."""
    options = (lark.schema(_call_schema(function), lenient=not function.strict) for function in functions)
    return CallGrammar(opening=None, rest=_repeated(lark.rule(" | ".join(options)), '"; "', parallel))


def _call_schema(function: Function) -> dict[str, Any]:
    parameters = _rerooted({**function.parameters, "type": "object"}, "#/$defs/parameters")
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "parameters": {"$ref": "#/$defs/parameters"}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
        "$defs": {"parameters": parameters},
    }


def _rerooted(schema: Any, root: str) -> Any:
    """A schema for another place: references within it begin at `root`. Its depth is bounded by the request's checks."""
    if isinstance(schema, list):
        return [_rerooted(part, root) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _rerooted(value, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


def _mistral_list_grammar(lark: Lark, functions: Sequence[Function], parallel: bool) -> CallGrammar:
    calls = _repeated(_objects(lark, functions, "arguments"), '", "', parallel)
    return CallGrammar(opening=scripts.TOOL_CALLS, rest=lark.rule(f'" "? "[" {calls} "]"'))


def _mistral_named_grammar(lark: Lark, functions: Sequence[Function], parallel: bool) -> CallGrammar:
    separator = lark.marker(scripts.ARGS)
    options = (f"{quoted(function.name)} {separator} {_arguments(lark, function)}" for function in functions)
    call = lark.rule(" | ".join(options))
    return CallGrammar(opening=scripts.TOOL_CALLS, rest=_repeated(call, lark.marker(scripts.TOOL_CALLS), parallel))


def _deepseek_grammar(lark: Lark, functions: Sequence[Function], parallel: bool, *, fenced: bool) -> CallGrammar:
    begin, separator, end = (lark.marker(text) for text in (scripts.CALL_BEGIN, scripts.SEP, scripts.CALL_END))
    options = (
        f'"function" {separator} {quoted(f"{function.name}{chr(10)}```json{chr(10)}")} {_arguments(lark, function)} "\\n```"'
        if fenced
        else f"{quoted(function.name)} {separator} {_arguments(lark, function)}"
        for function in functions
    )
    call = lark.rule(f"{begin} ({' | '.join(options)}) {end}")
    calls = _repeated(call, '"\\n"' if fenced else "", parallel)
    return CallGrammar(opening=scripts.CALLS_BEGIN, rest=lark.rule(f"{calls} {lark.marker(scripts.CALLS_END)}"))


def _deepseek_v3_grammar(lark: Lark, functions: Sequence[Function], parallel: bool) -> CallGrammar:
    return _deepseek_grammar(lark, functions, parallel, fenced=True)


def _deepseek_v31_grammar(lark: Lark, functions: Sequence[Function], parallel: bool) -> CallGrammar:
    return _deepseek_grammar(lark, functions, parallel, fenced=False)


def _qwen3_coder_grammar(lark: Lark, functions: Sequence[Function], parallel: bool) -> CallGrammar:
    opening, closing = lark.marker(scripts.TOOL_CALL), lark.marker(scripts.TOOL_CALL_END)
    options = " | ".join(_tagged(lark, function) for function in functions)
    body = lark.rule(f'"\\n" ({options}) {quoted(xml_script.FUNCTION_END + chr(10))} {closing}')
    return CallGrammar(opening=scripts.TOOL_CALL, rest=_repeated(body, f'"\\n" {opening}', parallel))


def _tagged(lark: Lark, function: Function) -> str:
    """A function's tag with its parameters, in the schema's order."""
    properties = function.parameters.get("properties")
    required = function.parameters.get("required")
    required = required if isinstance(required, list) else ()
    pieces = [quoted(f"{xml_script.FUNCTION}{function.name}>\n")]
    for key, schema in (properties if isinstance(properties, dict) else {}).items():
        tag = quoted(f"{xml_script.PARAMETER}{key}>\n")
        pieces.append(f"({tag} {_tagged_value(lark, function, schema)}){'' if key in required else '?'}")
    return lark.rule(" ".join(pieces))


def _tagged_value(lark: Lark, function: Function, schema: Any) -> str:
    closing = f"\n{xml_script.PARAMETER_END}\n"
    if xml_script.types_of(schema) == {"string"}:
        known = schema if isinstance(schema, dict) else {}
        values, longest = known.get("enum"), known.get("maxLength")
        if isinstance(values, list) and values:
            return f"({' | '.join(quoted(str(value)) for value in values)}) {quoted(closing)}"
        return lark.until(closing, longest if isinstance(longest, int) and 0 <= longest < _MAX_COUNTED else None)
    shared = {key: function.parameters[key] for key in ("$defs", "definitions") if key in function.parameters}
    return f"{lark.schema({**shared, **schema}, lenient=not function.strict)} {quoted(closing)}"


_HERMES_MARKERS = (scripts.TOOL_CALL, scripts.TOOL_CALL_END)
_MISTRAL_MARKERS = (scripts.TOOL_CALLS, scripts.ARGS, scripts.CALL_ID)
_DEEPSEEK_MARKERS = (scripts.CALLS_BEGIN, scripts.CALL_BEGIN, scripts.SEP, scripts.CALL_END, scripts.CALLS_END)


def _llama3_script(functions: Sequence[Function]) -> Script:
    known = frozenset(function.name for function in functions)
    return lambda feed, sink: scripts.llama3_json(feed, sink, known)


def _qwen3_coder_script(functions: Sequence[Function]) -> Script:
    schemas = {function.name: function.parameters for function in functions}
    return lambda feed, sink: xml_script.qwen3_coder(feed, sink, schemas)


_ROWS = (
    ToolFormat(name="hermes", markers=_HERMES_MARKERS, script=lambda _: scripts.hermes, grammar=_hermes_grammar),
    ToolFormat(name="llama3_json", markers=(scripts.PYTHON_TAG,), script=_llama3_script, grammar=_llama3_grammar),
    ToolFormat(
        name="mistral_v3",
        markers=_MISTRAL_MARKERS,
        script=lambda _: scripts.mistral,
        grammar=_mistral_list_grammar,
        new_id=mistral_id,
    ),
    ToolFormat(
        name="mistral_v11",
        markers=_MISTRAL_MARKERS,
        script=lambda _: scripts.mistral,
        grammar=_mistral_named_grammar,
        new_id=mistral_id,
    ),
    ToolFormat(
        name="deepseek_v3", markers=_DEEPSEEK_MARKERS, script=lambda _: scripts.deepseek, grammar=_deepseek_v3_grammar
    ),
    ToolFormat(
        name="deepseek_v31", markers=_DEEPSEEK_MARKERS, script=lambda _: scripts.deepseek, grammar=_deepseek_v31_grammar
    ),
    ToolFormat(
        name="qwen3_coder",
        markers=(*_HERMES_MARKERS, xml_script.FUNCTION, xml_script.FUNCTION_END),
        script=_qwen3_coder_script,
        grammar=_qwen3_coder_grammar,
    ),
)
FORMATS: Mapping[str, ToolFormat] = {row.name: row for row in _ROWS}
