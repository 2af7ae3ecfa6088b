"""However a text is cut, for whatever text, a stream's parts put together are those of the text in one go; and nothing ever raises."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from quire_contract.detokenize import Detokenizer
from quire_worker.server.parsing.formats import FORMATS
from quire_worker.server.parsing.think_script import MISTRAL_THINK, THINK
from quire_worker.server.parts import Part, ToolArguments, ToolCallBegin

DEMO = Path(__file__).parents[4] / "examples" / "models" / "quire-demo" / "tokenizer.json"
MARKERS = [
    *sorted({marker for row in FORMATS.values() for marker in row.markers}),
    "<parameter=", "</parameter>", "<function=get_weather>", "<parameter=city>", "<parameter=days>", "<think>", "</think>",
    "[THINK]", "[/THINK]", "```json", "```", "function",
]  # fmt: skip
FRAGMENTS = [
    '{"name": "get_weather", "arguments": {"city": "Rom\\u00e9 \\ud83d\\ude00", "days": -1.5e3}}',
    '{"name": "clock", "parameters": {}}',
    '{"arguments": {"a": [true, false, null]}, "name": "clock"}',
    '{"name": "clock", "arguments": "{\\"a\\": 1}"}',
    '{"name": "clock"}', '"name"', '"arguments": ', "{", "}", "[", "]", ":", ",", ";", '"', "\\", "\\u", "\\ud83d", "\\udc00", "0", "12",
    "1.", "-", "tru", "true", "get_weather", "clock", "\n", " ", "\t", "\r\n", "hello ", "日本", "😀", "\x00", "a" * 300, "x>", "null",
]  # fmt: skip
PIECES = st.lists(st.sampled_from(MARKERS + FRAGMENTS) | st.text(max_size=4), max_size=14)
FORMAT = st.sampled_from([None, *FORMATS])
TAGS = st.sampled_from([None, THINK, MISTRAL_THINK])


def cut(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted({edge % (len(text) + 1) for edge in at}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


ARGUMENTS = st.fixed_dictionaries(
    {"city": st.text(max_size=12)},
    optional={"days": st.integers(-(2**40), 2**40), "where": st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3)},
)  # fmt: skip
CALLS = st.lists(
    st.tuples(st.just("get_weather"), ARGUMENTS) | st.tuples(st.just("clock"), st.just({})), min_size=1, max_size=3
)


def check_shape(parts: list[Part]) -> None:
    """Calls begin in order, and arguments belong to the last begun."""
    num_begun = 0
    for part in parts:
        if isinstance(part, ToolCallBegin):
            assert part.index == num_begun and part.name
            num_begun += 1
        elif isinstance(part, ToolArguments):
            assert part.index == num_begun - 1 and part.text


@settings(max_examples=1500, deadline=None)
@given(FORMAT, TAGS, st.booleans(), PIECES, st.lists(st.integers(0, 5000), max_size=12), st.sampled_from([None, 1]))
def test_hostile_texts_read_the_same_however_they_are_cut(
    reader: Any, name: str | None, tags: Any, opened: bool, pieces: list[str], at: list[int], max_calls: int | None
) -> None:
    read = reader(name, tags, opened=opened, max_calls=max_calls)
    text = "".join(pieces)

    whole, parser = read.parts([text])
    in_pieces, other = read.parts(cut(text, at))
    by_character, last = read.parts(text)

    assert whole == in_pieces == by_character
    assert parser.calls_are_whole == other.calls_are_whole == last.calls_are_whole
    check_shape(whole)


@pytest.mark.parametrize("name", sorted(FORMATS))
@settings(max_examples=150, deadline=None)
@given(CALLS, st.sampled_from(["", "Let me look. ", "日本\n"]), st.lists(st.integers(0, 5000), max_size=12))
def test_what_a_model_writes_is_read_back(
    reader: Any, written: Any, name: str, calls: list[tuple[str, dict[str, Any]]], said: str, at: list[int]
) -> None:
    text = written(name, calls, said)
    if name == "qwen3_coder" and any("\r" in a.get("city", "") or a.get("city", "").startswith("\n") for _, a in calls):
        return  # that format cannot say where a text begins

    message = reader(name)(*cut(text, at))

    assert [call.name for call in message.calls] == [name for name, _ in calls]
    assert [json.loads(call.arguments) for call in message.calls] == [arguments for _, arguments in calls]
    assert message.content == ("" if name == "llama3_json" else said.rstrip())
    assert message.is_whole


@pytest.mark.parametrize("name", sorted(FORMATS))
@settings(max_examples=150, deadline=None)
@given(CALLS, st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["cut", "drop", "repeat", "swap"]))
def test_a_broken_call_is_read_the_same_by_character_and_whole(
    reader: Any, written: Any, name: str, calls: list[tuple[str, dict[str, Any]]], first: int, second: int, how: str
) -> None:
    text = written(name, calls, "")
    a, b = sorted((first % (len(text) + 1), second % (len(text) + 1)))
    broken = {
        "cut": text[:a],
        "drop": text[:a] + text[b:],
        "repeat": text[:b] + text[a:],
        "swap": text[:a] + text[b:] + text[a:b],
    }[how]

    whole, parser = reader(name).parts([broken])
    by_character, other = reader(name).parts(broken)

    assert whole == by_character
    assert parser.calls_are_whole == other.calls_are_whole


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.lists(st.integers(0, 5000), max_size=8))
def test_text_without_calls_is_content_to_the_last_space(reader: Any, text: str, at: list[int]) -> None:
    if any(sign in text for sign in "<[{"):
        return

    for name in FORMATS:
        assert reader(name)(*cut(text, at)).content == text


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_arguments_of_complete_calls_are_json_whatever_is_inside_their_strings(
    reader: Any, written: Any, name: str
) -> None:
    signs = random.Random(7)
    alphabet = [
        '\\"',
        "\\",
        "\\u",
        "\\ud83d",
        "\\udc00",
        "\\ude00",
        "\\d",
        "\n",
        "\x01",
        "é",
        "😀",
        "\\n",
        "/",
        "a",
        "u0041",
    ]
    for _ in range(300):
        inside = "".join(signs.choices(alphabet, k=signs.randrange(12)))
        text = written(name, [("get_weather", {"city": "@@"})], "").replace("@@", inside)

        message = reader(name)(text)

        for call in message.calls:
            if message.is_whole:
                json.loads(call.arguments).items()


@pytest.fixture(scope="module", params=["text", "plain", "special"])
def detokeniser(request: pytest.FixtureRequest) -> tuple[Tokenizer, Detokenizer]:
    """The demo model's vocabulary, with markers added in one of three ways: not at all, as plain tokens, as special ones."""
    tokenizer = Tokenizer.from_file(str(DEMO))
    if request.param != "text":
        special = request.param == "special"
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in MARKERS])
    return tokenizer, Detokenizer(tokenizer, tokenizer.to_str().encode())


@settings(max_examples=300, deadline=None)
@given(FORMAT, TAGS, st.booleans(), PIECES)
def test_texts_that_come_by_tokens_read_like_the_whole(
    reader: Any,
    detokeniser: tuple[Tokenizer, Detokenizer],
    name: str | None,
    tags: Any,
    opened: bool,
    pieces: list[str],
) -> None:
    tokenizer, detokenizer = detokeniser
    ids = tokenizer.encode("".join(pieces), add_special_tokens=False).ids
    found = (detokenizer.added_token(marker) for marker in MARKERS)
    stream = detokenizer.stream(shown_token_ids={token[0] for token in found if token is not None})
    read = reader(name, tags, opened=opened)

    by_tokens, parser = read.parts([*(stream.push(token_id) for token_id in ids), stream.finish()])
    whole, other = read.parts([detokenizer.decode(ids, skip_special_tokens=False)])

    assert by_tokens == whole
    assert parser.calls_are_whole == other.calls_are_whole
