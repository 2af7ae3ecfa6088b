"""Structured output in a request: what is refused and why, and the grammar that what is taken becomes."""

import json
from typing import Any

import pytest

from quire_contract.openai.decode import decode_request
from quire_contract.openai.errors import ApiError
from quire_contract.openai.requests import ChatCompletionRequest, CompletionRequest
from quire_contract.openai.structured import lark_of_choices, lark_of_schema, lark_regex, lark_string

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
WHITESPACE = r" {1,2}|\r?\n(\r?\n)?[ \t]{0,80}"


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return decode_request(ChatCompletionRequest, json.dumps(body).encode())


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def schema_in(text: str) -> Any:
    assert text.startswith("start: %json ")
    return json.loads(text.removeprefix("start: %json "))


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "structural tag": (
        {"response_format": {"type": "structural_tag"}},
        "response_format.type",
        "structured_outputs.grammar",
    ),
    "unknown type": ({"response_format": {"type": "regex"}}, "response_format.type", "structured_outputs"),
    "no schema object": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is required"),
    "no name": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "", "schema": SCHEMA}}},
        "response_format.json_schema.name",
        "must not be empty",
    ),
    "schema with another type": (
        {"response_format": {"type": "json_object", "json_schema": {"name": "x"}}},
        "response_format.json_schema",
        'needs type "json_schema"',
    ),
    "two constraints": (
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        "structured_outputs",
        "regex and choice",
    ),
    "both fields": (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
        "response_format",
    ),
    "option alone": (
        {"structured_outputs": {"disable_any_whitespace": True}},
        "structured_outputs.disable_any_whitespace",
        "needs structured_outputs.json",
    ),
    "option of another": (
        {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
        "structured_outputs.whitespace_pattern",
        "not for regex",
    ),
    "tag in outputs": (
        {"structured_outputs": {"structural_tag": {"a": 1}}},
        "structured_outputs.structural_tag",
        "is not supported",
    ),
    "empty regex": ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "must not be empty"),
    "lone backslash": ({"structured_outputs": {"regex": "a\\"}}, "structured_outputs.regex", "single backslash"),
    "long regex": ({"structured_outputs": {"regex": "a" * 20_000}}, "structured_outputs.regex", "20000 characters"),
    "no choices": ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one"),
    "empty choice": (
        {"structured_outputs": {"choice": ["a", ""]}},
        "structured_outputs.choice[1]",
        "must not be empty",
    ),
    "many choices": ({"structured_outputs": {"choice": ["a"] * 10_001}}, "structured_outputs.choice", "10001 entries"),
    "long choices": (
        {"structured_outputs": {"choice": ["a" * 300_000]}},
        "structured_outputs.choice",
        "300000 characters",
    ),
    "gbnf": ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "structured_outputs.grammar", "Lark grammar"),
    "json as grammar": (
        {"structured_outputs": {"grammar": ' {"a": 1}'}},
        "structured_outputs.grammar",
        "structured_outputs.json",
    ),
    "schema is no JSON": ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "is not valid JSON"),
    "schema text is a list": (
        {"structured_outputs": {"json": "[]"}},
        "structured_outputs.json",
        "must be a JSON schema",
    ),
    "deep schema": ({"structured_outputs": {"json": nested(120)}}, "structured_outputs.json", "more than 100 levels"),
    "large schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a" * 300_000]}}}},
        "response_format.json_schema.schema",
        "at most 262144",
    ),
}


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused_by_its_path(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)

    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(f"{param}: ")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("guided_json", "json"),
        ("guided_regex", "regex"),
        ("guided_choice", "choice"),
        ("guided_grammar", "grammar"),
        ("guided_whitespace_pattern", "whitespace_pattern"),
        ("regex", "regex"),
        ("choice", "choice"),
        ("grammar", "grammar"),
        ("json_schema", "json"),
    ],
)
def test_a_field_of_other_servers_is_refused_with_the_one_to_send(name: str, place: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**{name: "x"})

    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
    assert f'"structured_outputs": {{"{place}"' in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"structured_outputs": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False}},
        {"structured_outputs": {"structural_tag": None}},
    ],
)
def test_what_constrains_nothing_makes_no_grammar(fields: dict[str, Any]) -> None:
    assert chat(**fields).grammar is None


def test_a_schema_is_taken_whole_and_its_order_kept() -> None:
    schema = {"type": "object", "properties": {"z": {"const": 1.5}, "a": {"enum": ["ü", "\u2028"]}}, "x": 10**30}

    request = chat(
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    )

    assert request.grammar is not None
    assert request.grammar.field == "response_format.json_schema.schema"
    found = schema_in(request.grammar.text)
    assert found.pop("x-guidance") == {"whitespace_pattern": WHITESPACE}
    assert found == schema
    assert list(found["properties"]) == ["z", "a"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object"),
    ],
)
def test_json_without_a_schema_is_any_object(fields: dict[str, Any], field: str) -> None:
    grammar = chat(**fields).grammar

    assert grammar is not None
    assert grammar.field == field
    assert schema_in(grammar.text)["type"] == "object"


def test_a_schema_may_come_as_text_and_as_true() -> None:
    as_text = chat(structured_outputs={"json": json.dumps(SCHEMA)}).grammar

    assert as_text == chat(structured_outputs={"json": SCHEMA}).grammar
    assert chat(structured_outputs={"json": True}).grammar == chat(structured_outputs={"json": {}}).grammar


def test_options_go_into_the_schema_and_its_own_come_first_by_default() -> None:
    own = {**SCHEMA, "x-guidance": {"whitespace_pattern": " ", "lenient": True}}

    kept = schema_in(chat(structured_outputs={"json": own}).grammar.text)  # type: ignore[union-attr]
    none = schema_in(chat(structured_outputs={"json": own, "disable_any_whitespace": True}).grammar.text)  # type: ignore[union-attr]

    assert kept["x-guidance"] == {"whitespace_pattern": " ", "lenient": True}
    assert none["x-guidance"] == {"whitespace_pattern": None, "lenient": True, "whitespace_flexible": False}


def test_additional_properties_are_closed_where_the_schema_says_nothing() -> None:
    inner = {"type": "object", "properties": {}, "additionalProperties": True}
    schema = {"type": "object", "properties": {"properties": {"type": "object", "properties": {}}, "b": inner}}

    found = schema_in(chat(structured_outputs={"json": schema, "disable_additional_properties": True}).grammar.text)  # type: ignore[union-attr]

    assert found["additionalProperties"] is False
    assert found["properties"]["properties"]["additionalProperties"] is False
    assert found["properties"]["b"]["additionalProperties"] is True


def test_a_completion_takes_the_same_fields() -> None:
    body = {"model": "m", "prompt": "x", "structured_outputs": {"choice": ["a"]}}

    request = decode_request(CompletionRequest, json.dumps(body).encode())

    assert request.grammar is not None
    assert request.grammar.text == 'start: CHOICE\nCHOICE: "a"'


@pytest.mark.parametrize(
    ("pattern", "literal"),
    [
        ("a/b", r"/a\/b/"),
        (r"a\/b", r"/a\/b/"),
        (r"\d\D\\d", r"/[0-9][^0-9]\\d/"),
        ("a\nb\t", r"/a\x{a}b\x{9}/"),
        ("\\\n", r"/\x{a}/"),
        ("é日", "/é日/"),
        ("\u2028\x7f", r"/\x{2028}\x{7f}/"),
        ("a\\", r"/a\\/"),
    ],
)
def test_a_regex_cannot_leave_its_literal(pattern: str, literal: str) -> None:
    assert lark_regex(pattern) == literal


def test_strings_and_schemas_stay_on_their_line() -> None:
    text = 'a"b\\\n\u2028\x7f'

    made = [lark_string(text), lark_of_schema({"const": text})]

    assert all(line.isascii() and line.isprintable() for line in made)
    assert lark_of_choices([text, "c"]).count("\n") == 1
