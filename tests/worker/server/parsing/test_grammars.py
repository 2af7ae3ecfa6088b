"""Grammars of tool calls, tried with llguidance itself: what a model is trained to write is allowed, anything else is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from quire_contract.openai.decode import decode_request
from quire_contract.openai.errors import ApiError
from quire_contract.openai.requests import ChatCompletionRequest
from quire_worker.server.parsing.dialect import Dialect, Marker
from quire_worker.server.parsing.formats import FORMATS
from quire_worker.server.parsing.lark import quoted
from quire_worker.server.parsing.think_script import THINK, ThinkTags

DEMO = Path(__file__).parents[4] / "examples" / "models" / "quire-demo" / "tokenizer.json"
MARKERS = sorted({marker for row in FORMATS.values() for marker in row.markers if "function" not in marker})
END = 2
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 0}},
}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ROME = ("get_weather", {"city": "Rome", "days": 3})
NOW: tuple[str, dict[str, Any]] = ("clock", {})


class Vocabulary:
    """The demo model's, with markers added in one of three ways: not at all, as plain tokens, as special ones."""

    def __init__(self, kind: str) -> None:
        self.tokenizer = Tokenizer.from_file(str(DEMO))
        if kind != "text":
            texts = [*MARKERS, THINK.begin, THINK.end]
            self.tokenizer.add_tokens([AddedToken(text, special=kind == "special", normalized=False) for text in texts])
        self.ll = LLTokenizer(self.tokenizer.to_str(), n_vocab=self.tokenizer.get_vocab_size(), eos_token=END)
        added = self.tokenizer.get_added_tokens_decoder()
        self.markers = {token.content: Marker(number, token.special) for number, token in added.items()}

    def verdict(self, grammar: str, text: str) -> str:
        """yes, begins (a beginning of what is allowed) or no."""
        matcher = LLMatcher(self.ll, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if matcher.try_consume_tokens(ids) < len(ids):
            return "no"
        return "yes" if matcher.is_accepting() else "begins"


@pytest.fixture(scope="module", params=["text", "plain", "special"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary(request.param)


def grammar(
    vocabulary: Vocabulary,
    name: str,
    tags: ThinkTags | None = None,
    *,
    tail: str = "",
    content: str | None = None,
    **fields: Any,
) -> str | None:
    """What a chat with these fields must match."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER, CLOCK], **fields}
    request = decode_request(ChatCompletionRequest, json.dumps(body).encode())
    reading = Dialect(FORMATS[name], tags, vocabulary.markers).reading(request, tail, content_grammar=content)
    assert reading is not None
    return reading.grammar


def demanded(*args: Any, **fields: Any) -> str:
    text = grammar(*args, **fields)
    assert text is not None
    return text


ALL = pytest.mark.parametrize("name", sorted(FORMATS))


@ALL
def test_required_allows_what_the_model_is_trained_to_write_and_nothing_else(
    vocabulary: Vocabulary, written: Any, name: str
) -> None:
    source = demanded(vocabulary, name, tool_choice="required")

    assert vocabulary.verdict(source, written(name, [ROME], "")) == "yes"
    assert vocabulary.verdict(source, written(name, [NOW], "")) == "yes"
    assert vocabulary.verdict(source, written(name, [ROME, NOW, ROME], "")) == "yes"
    assert vocabulary.verdict(source, "First. " + written(name, [ROME], "")) == "no"
    assert vocabulary.verdict(source, written(name, [("get_weather", {"city": "Rome", "days": -1})], "")) == "no"
    assert vocabulary.verdict(source, written(name, [("nobody", {})], "")) == "no"
    assert vocabulary.verdict(source, "Rome") == "no"
    assert vocabulary.verdict(source, "") == "begins"


@ALL
def test_one_call_at_most_where_calls_are_not_parallel_or_one_is_named(
    vocabulary: Vocabulary, written: Any, name: str
) -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    single = demanded(vocabulary, name, tool_choice="required", parallel_tool_calls=False)
    chosen = demanded(vocabulary, name, tool_choice=named)

    assert vocabulary.verdict(single, written(name, [ROME], "")) == "yes"
    assert vocabulary.verdict(single, written(name, [ROME, NOW], "")) == "no"
    assert vocabulary.verdict(chosen, written(name, [NOW], "")) == "yes"
    assert vocabulary.verdict(chosen, written(name, [ROME], "")) == "no"


@ALL
def test_strict_functions_may_be_called_or_not_but_rightly(vocabulary: Vocabulary, written: Any, name: str) -> None:
    source = demanded(vocabulary, name, tools=[STRICT, CLOCK])
    said = "" if name == "llama3_json" else "Let me see.\n"

    assert vocabulary.verdict(source, "Just a {text} with [brackets].") == "yes"
    assert vocabulary.verdict(source, "") == "yes"
    assert vocabulary.verdict(source, written(name, [ROME, NOW], said)) == "yes"
    assert vocabulary.verdict(source, written(name, [("get_weather", {"city": "Rome"})], said)) == "no"
    assert vocabulary.verdict(source, written(name, [("nobody", {})], said)) == "no"


@ALL
def test_auto_without_strict_functions_constrains_nothing(vocabulary: Vocabulary, name: str) -> None:
    assert grammar(vocabulary, name) is None


@ALL
def test_allowed_tools_may_be_called_and_others_not(vocabulary: Vocabulary, written: Any, name: str) -> None:
    clock = {"type": "function", "function": {"name": "clock"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [clock]}}
    source = demanded(vocabulary, name, tool_choice=choice)

    assert vocabulary.verdict(source, "No call.") == "yes"
    assert vocabulary.verdict(source, written(name, [NOW], "")) == "yes"
    assert vocabulary.verdict(source, written(name, [ROME], "")) == "no"


@ALL
def test_beside_a_response_format_a_message_is_its_content_or_calls(
    vocabulary: Vocabulary, written: Any, name: str
) -> None:
    content = 'start: %json {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}'
    source = demanded(vocabulary, name, content=content)

    assert vocabulary.verdict(source, '{"answer": 3}') == "yes"
    assert vocabulary.verdict(source, written(name, [ROME], "")) == "yes"
    assert vocabulary.verdict(source, "Three.") == "no"
    assert demanded(vocabulary, name, content=content, tool_choice="none") == content


@pytest.mark.parametrize(
    "content", ['start: CHOICE\nCHOICE: "a" | "b c"', "start: /[ab]( c)?/", '%llguidance {}\nstart: "b c"']
)
def test_any_grammar_of_content_may_stand_behind_reasoning(vocabulary: Vocabulary, content: str) -> None:
    source = demanded(vocabulary, "hermes", THINK, content=content, tool_choice="none")

    assert vocabulary.verdict(source, "b c") == "yes"
    assert vocabulary.verdict(source, "<think>\nI wonder.\n</think>\n\nb c") == "yes"
    assert vocabulary.verdict(source, "<think>\nI wonder.\n</think>\n\nc") == "no"


@ALL
def test_reasoning_may_come_before_demanded_calls_and_goes_on_where_the_prompt_opened_it(
    vocabulary: Vocabulary, written: Any, name: str
) -> None:
    free = demanded(vocabulary, name, THINK, tool_choice="required")
    opened = demanded(vocabulary, name, THINK, tail="assistant\n<think>\n", tool_choice="required")
    call = written(name, [ROME], "")

    assert vocabulary.verdict(free, call) == "yes"
    assert vocabulary.verdict(free, f"<think>Hm.</think>\n\n{call}") == "yes"
    assert vocabulary.verdict(free, f"Hm.</think>{call}") == "no"
    assert vocabulary.verdict(opened, f"Hm.\n</think>\n\n{call}") == "yes"
    assert vocabulary.verdict(opened, "Hm.\n</think>\n\nNo.") == "no"


HOSTILE_KEYS = [
    'a"b',
    "a\\b",
    "line\nbreak",
    "tab\t",
    "/x/",
    "start: x",
    "\x00",
    "日本",
    "</parameter>",
    "%json",
    "a > b",
    "😀",
    "\x7f",
    "\u2028",
    "\x85",
]


@ALL
def test_names_of_parameters_cannot_break_out_of_the_grammar(vocabulary: Vocabulary, written: Any, name: str) -> None:
    properties = {key: {"type": "integer"} for key in HOSTILE_KEYS}
    parameters = {"type": "object", "properties": properties, "required": HOSTILE_KEYS, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}

    source = demanded(vocabulary, name, tools=[tool], tool_choice="required")

    assert vocabulary.verdict(source, "Rome") == "no"
    assert vocabulary.verdict(source, "") == "begins"


def test_strings_are_quoted_as_lark_reads_them(vocabulary: Vocabulary) -> None:
    for text in [*HOSTILE_KEYS, 'a"; b: "c', "\x7f\x1f", "\u2028"]:
        assert vocabulary.verdict(f"start: {quoted(text)}\n", text) == "yes", text


def test_a_keyword_that_llguidance_does_not_know_is_passed_over_unless_the_function_is_strict(
    vocabulary: Vocabulary,
) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "x-unknown": 1}}}
    loose: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    strict = {"type": "function", "function": {**loose["function"], "strict": True}}

    lenient = demanded(vocabulary, "hermes", tools=[loose], tool_choice="required")
    exact = demanded(vocabulary, "hermes", tools=[strict], tool_choice="required")

    assert LLMatcher.validate_grammar(lenient, vocabulary.ll) == ""
    assert "uniqueItems" in LLMatcher.validate_grammar(exact, vocabulary.ll)


def test_the_rule_of_which_tokens_are_special_is_llguidances(vocabulary: Vocabulary) -> None:
    dialect = Dialect(FORMATS["hermes"], THINK, vocabulary.markers)

    for text, marker in vocabulary.markers.items():
        assert vocabulary.ll.is_special_token(marker.token_id) == (dialect.marker_id(text) is not None), text


WORDS = st.sampled_from(
    [
        "type",
        "properties",
        "required",
        "enum",
        "anyOf",
        "oneOf",
        "$ref",
        "$defs",
        "maxLength",
        "items",
        "const",
        "a",
        "x-guidance",
    ]
)
TEXTS = st.sampled_from(["object", "string", "#/$defs/a"]) | st.text(max_size=3)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["object", "string", "#/$defs/a"])
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.dictionaries(WORDS, VALUES, max_size=4),
    st.dictionaries(WORDS, VALUES, max_size=3),
    st.booleans(),
)
def test_whatever_a_schema_is_its_grammar_is_made_or_the_request_refused(
    name: str, parameters: dict[str, Any], properties: dict[str, Any], strict: bool
) -> None:
    """What it says is the engine's to refuse: llguidance reads it there, away from others."""
    function = {"name": "f", "strict": strict, "parameters": {"properties": properties, **parameters}}
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "tool_choice": "required",
        "tools": [{"function": function}],
    }
    try:
        request = decode_request(ChatCompletionRequest, json.dumps(body).encode())
    except ApiError as error:
        assert error.status == 400
        return

    reading = Dialect(FORMATS[name], THINK, {}).reading(request, "")

    assert reading is not None and reading.grammar is not None
    assert reading.grammar.isascii() and reading.grammar.startswith("start: ")
    reading.new_parser("").push("<tool_call><function=f><parameter=a>1</parameter></function>")
