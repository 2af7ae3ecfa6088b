"""Structured output: what a request says its answer must match, as one grammar text.

    response_format       OpenAI's: text, json_object, json_schema
    structured_outputs    vLLM's: exactly one of json, json_object, regex, choice, grammar; and options for json

The text is a Lark grammar in llguidance's dialect (https://github.com/guidance-ai/llguidance, docs/syntax.md). The engine compiles it, and
refuses a request whose text does not compile. Here sizes are bounded and everything is escaped; nothing is compiled.
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from quire_contract.openai.errors import CODE_UNSUPPORTED, ApiError, invalid
from quire_contract.openai.limits import Limits
from quire_contract.openai.multiples import check_multiples, check_multiples_in_text

GUIDANCE_KEY = "x-guidance"
"""Key of a schema that holds llguidance's options."""
DEFAULT_WHITESPACE = r" {1,2}|\r?\n(\r?\n)?[ \t]{0,80}"
"""What may stand between the tokens of JSON, or nothing: spaces, or a line break and indentation. Bounded, because a model that may
write white space for ever sometimes does."""
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_ESCAPES = {"d": "[0-9]", "D": "[^0-9]"}
_CONSTRAINTS = ("json", "json_object", "regex", "choice", "grammar")
_JSON_OPTIONS = ("disable_any_whitespace", "whitespace_pattern", "disable_additional_properties")


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True):
    """A named schema. `strict` or not, the answer matches it."""

    name: str
    schema: dict[str, Any] | bool | None = None
    """None: any JSON object."""
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's `response_format`."""

    type: str
    """"text" | "json_object" | "json_schema"."""
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's `structured_outputs`."""

    json: dict[str, Any] | bool | str | None = None
    """A JSON schema, or one as text."""
    json_object: bool | None = None
    """true: any JSON object."""
    regex: str | None = None
    """In the syntax of Rust's regex crate; the whole answer must match."""
    choice: list[str] | None = None
    """The answer is one of these."""
    grammar: str | None = None
    """A Lark grammar in llguidance's dialect, with a rule `start`."""
    disable_any_whitespace: bool | None = None
    """JSON without white space between its tokens."""
    whitespace_pattern: str | None = None
    """Regular expression of the white space that may stand between JSON's tokens."""
    disable_additional_properties: bool | None = None
    """Objects whose schema does not say otherwise have no properties but those it names."""
    structural_tag: Any = None


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must match."""

    text: str
    field: str
    """Path of the field it comes from, for errors."""


def check_structured(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None, limits: Limits
) -> None:
    """400 for what is contradictory or too large."""
    formatted = response_format is not None and _check_format(response_format, limits)
    constrained = structured_outputs is not None and _check_outputs(structured_outputs, limits)
    if formatted and constrained:
        raise invalid("structured_outputs", "cannot be combined with response_format; send one of them")


def grammar_of(response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None) -> Grammar | None:
    """The grammar of a checked request; None if its answer is free."""
    if structured_outputs is not None:
        return _grammar_of_outputs(structured_outputs)
    if response_format is None or response_format.type == "text":
        return None
    wanted = response_format.json_schema
    if response_format.type == "json_object" or wanted is None or wanted.schema is None:
        return Grammar(lark_of_schema(_ANY_OBJECT), "response_format")
    return Grammar(lark_of_schema(wanted.schema), "response_format.json_schema.schema")


def lark_of_schema(schema: dict[str, Any] | bool) -> str:
    """A grammar of the JSON values that match `schema`, with bounded white space unless its "x-guidance" says otherwise."""
    return f"start: {lark_json(schema)}"


def lark_json(schema: dict[str, Any] | bool) -> str:
    """The same as an expression, for use inside a rule."""
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        own = schema.get(GUIDANCE_KEY)
        options = {"whitespace_pattern": DEFAULT_WHITESPACE, **(own if isinstance(own, dict) else {})}
        schema = {**schema, GUIDANCE_KEY: options}
    return "%json " + json.dumps(schema)


def lark_string(text: str) -> str:
    """A literal that matches `text`, as an expression."""
    return json.dumps(text)


def lark_regex(pattern: str) -> str:
    r"""A literal that matches what `pattern` does, as an expression. `\d` means 0 to 9, here as in JSON schemas."""
    parts: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character != "\\":
            parts.append(r"\/" if character == "/" else _plain(character))
            continue
        following = next(characters, "\\")
        parts.append(_ESCAPES.get(following) or ("\\" + following if _is_safe(following) else _plain(following)))
    return f"/{''.join(parts)}/"


def _plain(character: str) -> str:
    """As it is, or by its number where a line of a grammar cannot hold it."""
    return character if _is_safe(character) else f"\\x{{{ord(character):x}}}"


def _is_safe(character: str) -> bool:
    return character.isprintable() and (character.isascii() or character.isalnum())


def lark_of_choices(choices: list[str]) -> str:
    """A grammar of these strings; one terminal, which compiles faster than a rule."""
    return "start: CHOICE\nCHOICE: " + " | ".join(map(lark_string, choices))


def _check_format(wanted: ResponseFormat, limits: Limits) -> bool:
    """Whether it constrains the answer."""
    if wanted.type == "structural_tag":
        raise invalid("response_format.type", "structural_tag is not supported; send structured_outputs.grammar",
                      CODE_UNSUPPORTED)  # fmt: skip
    if wanted.type not in ("text", "json_object", "json_schema"):
        raise invalid("response_format.type", "must be text, json_object or json_schema; regex, choice and grammar go "
                      "into structured_outputs")  # fmt: skip
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise invalid("response_format.json_schema", 'is required with type "json_schema"')
        if not wanted.json_schema.name:
            raise invalid("response_format.json_schema.name", "must not be empty")
        _check_schema("response_format.json_schema.schema", wanted.json_schema.schema, limits)
    elif wanted.json_schema is not None:
        raise invalid("response_format.json_schema", 'needs type "json_schema"')
    return wanted.type != "text"


def _check_outputs(wanted: StructuredOutputs, limits: Limits) -> bool:
    """Whether it constrains the answer: an empty object does not."""
    if wanted.structural_tag is not None:
        raise invalid("structured_outputs.structural_tag", "is not supported; send structured_outputs.grammar",
                      CODE_UNSUPPORTED)  # fmt: skip
    given = _given(wanted)
    options = [name for name in _JSON_OPTIONS if getattr(wanted, name)]
    if len(given) > 1:
        raise invalid("structured_outputs", f"has {' and '.join(given)}; exactly one is allowed")
    if not given and options:
        raise invalid(f"structured_outputs.{options[0]}", "needs structured_outputs.json or json_object")
    if not given:
        return False
    if options and given[0] not in ("json", "json_object"):
        raise invalid(f"structured_outputs.{options[0]}", f"is for json, not for {given[0]}")
    _check_text("structured_outputs.whitespace_pattern", wanted.whitespace_pattern, limits.max_regex_chars)
    check: dict[str, Callable[[], None]] = {
        "json": lambda: _check_schema("structured_outputs.json", _schema_of(wanted.json), limits),
        "regex": lambda: _check_regex(wanted.regex or "", limits),
        "choice": lambda: _check_choice(wanted.choice or [], limits),
        "grammar": lambda: _check_grammar(wanted.grammar or "", limits),
        "json_object": lambda: None,
    }
    check[given[0]]()
    return True


def _given(wanted: StructuredOutputs) -> list[str]:
    values = {name: getattr(wanted, name) for name in _CONSTRAINTS}
    return [name for name, value in values.items() if value is not None and (name != "json_object" or value)]


def _schema_of(value: dict[str, Any] | bool | str | None) -> dict[str, Any] | bool | None:
    """The schema itself where it came as text."""
    if not isinstance(value, str):
        return value
    try:
        decoded: Any = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid("structured_outputs.json", f"is not valid JSON: {error}") from None
    if not isinstance(decoded, dict | bool):
        raise invalid("structured_outputs.json", "must be a JSON schema: an object, true or false")
    return decoded


def _check_schema(field: str, schema: dict[str, Any] | bool | None, limits: Limits) -> None:
    _check_depth(field, schema, limits.max_schema_depth)
    size = len(msgspec.json.encode(schema))
    if size > limits.max_schema_bytes:
        raise invalid(field, f"has {size} bytes; at most {limits.max_schema_bytes} are allowed")
    check_multiples(field, schema)


def _check_depth(field: str, value: object, most: int) -> None:
    """Level by level, not by recursion."""
    level: list[object] = [value]
    for _ in range(most):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise invalid(field, f"is nested more than {most} levels deep")


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return [child for child in value.values() if isinstance(child, dict | list)]
    return [child for child in value if isinstance(child, dict | list)] if isinstance(value, list) else []


def _check_text(field: str, text: str | None, most: int) -> None:
    if text is None:
        return
    if not text:
        raise invalid(field, "must not be empty")
    if len(text) > most:
        raise invalid(field, f"has {len(text)} characters; at most {most} are allowed")


def _check_regex(pattern: str, limits: Limits) -> None:
    field = "structured_outputs.regex"
    _check_text(field, pattern, limits.max_regex_chars)
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise invalid(field, "must not end in a single backslash")


def _check_choice(choices: list[str], limits: Limits) -> None:
    field = "structured_outputs.choice"
    if not choices:
        raise invalid(field, "must hold at least one string")
    if len(choices) > limits.max_choice_strings:
        raise invalid(field, f"has {len(choices)} entries; at most {limits.max_choice_strings} are allowed")
    if "" in choices:
        raise invalid(f"{field}[{choices.index('')}]", "must not be empty")
    size = sum(map(len, choices))
    if size > limits.max_schema_bytes:
        raise invalid(field, f"has {size} characters in all; at most {limits.max_schema_bytes} are allowed")


def _check_grammar(text: str, limits: Limits) -> None:
    field = "structured_outputs.grammar"
    _check_text(field, text, limits.max_schema_bytes)
    check_multiples_in_text(field, text)
    if "::=" in text:
        raise _not_lark(field, "this looks like EBNF or GBNF")
    if text.lstrip().startswith("{"):
        raise _not_lark(field, "this looks like JSON; a JSON schema goes into structured_outputs.json")


def _not_lark(field: str, what: str) -> ApiError:
    return invalid(field, f'{what}; send a Lark grammar, such as: start: "yes" | "no"')


def _grammar_of_outputs(wanted: StructuredOutputs) -> Grammar | None:
    given = _given(wanted)
    if not given:
        return None
    field = f"structured_outputs.{given[0]}"
    if wanted.regex is not None:
        return Grammar(f"start: {lark_regex(wanted.regex)}", field)
    if wanted.choice is not None:
        return Grammar(lark_of_choices(wanted.choice), field)
    if wanted.grammar is not None:
        return Grammar(wanted.grammar, field)
    schema = _schema_of(wanted.json) if wanted.json is not None else _ANY_OBJECT
    assert schema is not None, "json or json_object is given"
    return Grammar(lark_of_schema(_with_options(schema, wanted)), field)


def _with_options(schema: dict[str, Any] | bool, wanted: StructuredOutputs) -> dict[str, Any] | bool:
    if isinstance(schema, bool):
        if not schema:
            return False
        schema = {}
    if wanted.disable_additional_properties:
        schema = {key: _closed(value) for key, value in _sealed(schema).items()}
    options: dict[str, Any] = {}
    if wanted.whitespace_pattern is not None:
        options = {"whitespace_pattern": wanted.whitespace_pattern}
    if wanted.disable_any_whitespace:
        options = {"whitespace_flexible": False, "whitespace_pattern": None}
    if not options:
        return schema
    own = schema.get(GUIDANCE_KEY)
    return {**schema, GUIDANCE_KEY: {**(own if isinstance(own, dict) else {}), **options}}


def _closed(value: Any) -> Any:
    """A copy in which objects with `properties` allow no others, unless they say so. The depth is bounded."""
    if isinstance(value, list):
        return [_closed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _closed(item) for key, item in _sealed(value).items()}


def _sealed(schema: dict[str, Any]) -> dict[str, Any]:
    says_so = "additionalProperties" in schema or "unevaluatedProperties" in schema
    return (
        schema
        if says_so or not isinstance(schema.get("properties"), dict)
        else {**schema, "additionalProperties": False}
    )
