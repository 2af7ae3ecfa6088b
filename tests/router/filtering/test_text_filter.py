"""What filtering a text gives depends on the text alone, never on how it comes; and nothing of a match goes out before it is known."""

import itertools
import json
import random
import string

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_router.filtering.finder import Finder
from quire_router.filtering.json_text import JsonTextFilter
from quire_router.filtering.pii import pii_finders
from quire_router.filtering.prefixes import prefix_pattern
from quire_router.filtering.text_filter import Action, Rule, TextFilter
from quire_router.filtering.words import word_finders

PATTERNS = [
    r"ab+c",
    r"(?i)secret\b",
    r"\d{3}-\d{2,4}",
    r"(foo|foobar)+",
    r"a.*?b",
    r"(?m)^x+$",
    "é+f?",
    r"a[^!]*!|a",
    r"\bcat\b",
    r"b{2,}c{0,3}$",
    r"\Qa.b\E",
    r"[[:digit:]]+[^]x]",
]
FINDERS: dict[object, tuple[Finder, ...]] = {
    **{(pattern, size): (Finder(pattern, max_bytes=size),) for pattern in PATTERNS for size in (8, 32)},
    "words": tuple(word_finders(["cat", "foo bar", "c++", "+a", "a", "fo x", "é"])),
    "pii": tuple(pii_finders(["email", "phone", "us_ssn", "ip_address", "credit_card", "iban", "api_key"])),
}
TEXTS = st.lists(
    st.sampled_from(
        [
            *'abcéfox!1-2\n "\\{}:+',
            "foo",
            "bar",
            "secret",
            "SECRET",
            "cat",
            "a@b.co ",
            "123-45-6789",
            "4111 1111 1111 1111",
        ]
    ),
    max_size=40,
).map("".join)
RULES = st.lists(
    st.tuples(st.sampled_from(["redact", "redact", "block", "flag"]), st.sampled_from(list(FINDERS))),
    min_size=1,
    max_size=3,
)
CUTS = st.lists(st.integers(0, 120), max_size=20)


def rules_of(chosen: list[tuple[Action, object]]) -> list[Rule]:
    return [Rule(f"r{i}", action, FINDERS[kind], f"<{i}>") for i, (action, kind) in enumerate(chosen)]


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


def streamed(
    kind: type[TextFilter] | type[JsonTextFilter], rules: list[Rule], pieces: list[str]
) -> tuple[str, str | None]:
    channel = kind(rules, lambda rule: None)
    out = "".join(channel.feed(piece) for piece in pieces) + channel.end()
    return out, channel.blocked_by and channel.blocked_by.name


@settings(deadline=None)
@given(TEXTS, RULES, CUTS)
def test_a_text_cut_anywhere_comes_out_as_the_whole_does(
    text: str, chosen: list[tuple[Action, object]], places: list[int]
) -> None:
    rules = rules_of(chosen)

    whole = streamed(TextFilter, rules, [text])

    assert streamed(TextFilter, rules, cut(text, places)) == whole
    assert streamed(TextFilter, rules, list(text)) == whole


@settings(deadline=None)
@given(TEXTS, RULES, CUTS)
def test_a_json_text_cut_anywhere_comes_out_as_the_whole_does(
    text: str, chosen: list[tuple[Action, object]], places: list[int]
) -> None:
    rules = rules_of(chosen)

    whole = streamed(JsonTextFilter, rules, [text])

    assert streamed(JsonTextFilter, rules, cut(text, places)) == whole


@settings(deadline=None)
@given(
    st.recursive(
        st.text(max_size=8) | st.integers() | st.none(),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=5), x),
        max_leaves=8,
    ),
    st.booleans(),
    CUTS,
)
def test_json_of_which_nothing_is_found_means_the_same_however_it_is_written_and_cut(
    value: object, ascii_only: bool, places: list[int]
) -> None:
    rules = [Rule("r", "redact", FINDERS["pii"], 'a "quoted" [x]')]
    text = json.dumps(value, ensure_ascii=ascii_only).encode(errors="replace").decode()

    out, _ = streamed(JsonTextFilter, rules, cut(text, places))

    assert out == json.dumps(json.loads(text), ensure_ascii=False).encode(errors="replace").decode() or json.loads(
        out
    ) == json.loads(text)


def test_a_redaction_inside_of_json_leaves_json() -> None:
    rules = [Rule("r", "redact", FINDERS["pii"], 'a "quoted" one')]
    text = r'{"to": "x a\u0040b.org \ud83d\ude00", "card": 4111111111111111, "n": 1.50}'

    out, _ = streamed(JsonTextFilter, rules, list(text))

    assert json.loads(out) == {"to": 'x a "quoted" one 😀', "card": 'a "quoted" one', "n": 1.5}


@settings(deadline=None)
@given(TEXTS, st.sampled_from(list(FINDERS)), CUTS)
def test_nothing_that_is_given_out_holds_a_part_of_what_is_blocked(text: str, kind: object, places: list[int]) -> None:
    rules = [Rule("b", "block", FINDERS[kind], "")]

    out, blocked = streamed(TextFilter, rules, cut(text, places))

    assert text.startswith(out)
    assert (blocked is None) == (out == text)
    assert streamed(TextFilter, rules, [out])[0] == out or blocked is not None


@settings(deadline=None)
@given(TEXTS, st.sampled_from(PATTERNS))
def test_every_beginning_of_a_match_is_known_as_one(text: str, pattern: str) -> None:
    begun = prefix_pattern(pattern)
    assert begun is not None
    beginnings = re2.compile(rf"(?:{begun})\z")

    for match in re2.compile(pattern).finditer(text):
        start, end = match.span()
        for stop in range(start, end + 1):
            assert beginnings.search(text[:stop]).start() <= start


def test_text_that_cannot_become_a_match_goes_on_at_once() -> None:
    channel = TextFilter([Rule("r", "redact", (Finder(r"(?i)project\s+x\d+", max_bytes=256),), "-")], lambda rule: None)

    given_out = [channel.feed(piece) for piece in ("the ", "pro", "duct", " proj", "ect  ", "x1", "2, ok")]

    assert given_out == ["the ", "", "product", " ", "", "", "-, ok"]


@pytest.mark.parametrize("pattern", [r"a(?i)b", r"\Cx", r"a**", r"(?P<a", r"\Qopen"])
def test_syntax_that_is_not_known_for_sure_is_held_back_by_length_alone(pattern: str) -> None:
    assert prefix_pattern(pattern) is None


def test_thousands_of_words_are_found_whole_in_any_case_and_script() -> None:
    rng = random.Random(7)
    words = ["".join(rng.choices(string.ascii_lowercase, k=8)) for _ in range(6000)] + [
        "straße",
        "черт",
        "bad word",
        "c++",
    ]
    rules = [Rule("w", "redact", tuple(word_finders(words)), "*")]
    text = f"{words[5].upper()} x{words[5]} {words[5999]}, STRAßE ЧЕРТ чертог bad \n WORD bad words c++17 é{words[3]}"

    out, _ = streamed(TextFilter, rules, list(text))

    assert out == f"* x{words[5]} *, * * чертог * bad words *17 é{words[3]}"


def test_a_match_longer_than_its_bound_is_found_in_pieces_of_the_bound() -> None:
    rules = [Rule("r", "redact", (Finder(r"\d+", max_bytes=8),), "#")]

    assert streamed(TextFilter, rules, ["x" + "1" * 20 + "y"]) == ("x###y", None)


def test_a_block_is_not_hidden_by_a_redaction_over_it() -> None:
    rules = [
        Rule("wide", "redact", (Finder("a.*z", max_bytes=64),), "-"),
        Rule("stop", "block", (Finder("mmm", max_bytes=8),)),
    ]

    assert streamed(TextFilter, rules, ["x a mmm z y"]) == ("x -", "stop")


def test_a_large_text_is_filtered_in_time_that_grows_with_its_length_alone() -> None:
    rules = [Rule("r", "redact", (Finder(r"a[^!]*!|b", max_bytes=64),), "")]

    out, _ = streamed(TextFilter, rules, ["b" * 20_000 + "a" * 20_000])

    assert out == "a" * 20_000
