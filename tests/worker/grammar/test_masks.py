"""Masks and matchers: what may come, when a choice ends, and that one choice's trouble is its own."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from quire_worker.grammar.compiler import digest_of
from quire_worker.grammar.masks import MaskFiller, MaskWanted
from quire_worker.grammar.matcher import CompiledGrammar, Matcher
from quire_worker.grammar.tokenizer import GrammarTokenizer, NoTokenizerError, grammar_tokenizer, load_grammar_tokenizer
from quire_worker.plan import TokenMasks

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
ENDS = (0, 2)


@pytest.fixture(scope="module")
def encode() -> Callable[[str], list[int]]:
    made = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    return lambda text: made.encode(text, add_special_tokens=False).ids


@pytest.fixture
def matcher(bench: Any) -> Callable[[str], Matcher]:
    def make(text: str) -> Matcher:
        outcome = bench.compile(text)
        assert isinstance(outcome, CompiledGrammar)
        return outcome.new_matcher()

    return make


def allowed(masks: TokenMasks | None) -> dict[int, list[int]]:
    """Row -> token ids."""
    assert masks is not None
    bits = np.unpackbits(np.frombuffer(masks.bits, np.uint8).reshape(len(masks.rows), -1), axis=1, bitorder="little")
    return {row: np.flatnonzero(found).tolist() for row, found in zip(masks.rows, bits, strict=True)}


def take(matcher: Matcher, tokens: list[int]) -> list[Any]:
    return [matcher.take(token) for token in tokens]


class RaisingMatcher:
    """What llguidance is not known to do."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("secret insides")


def test_each_row_gets_the_mask_of_its_own_grammar(matcher: Any, encode: Any) -> None:
    digits, yes = matcher("start: /[0-9]+/"), matcher('start: "yes"')

    masks, verdicts = MaskFiller().fill([MaskWanted(7, digits), MaskWanted(2, yes)])

    found = allowed(masks)
    assert verdicts == [None, None]
    assert set(found[7]) == {encode(digit)[0] for digit in "0123456789"}
    assert encode("y")[0] in found[2]
    assert encode("n")[0] not in found[2]


def test_where_a_grammar_may_end_or_go_on_the_end_tokens_are_among_what_may_come(matcher: Any, encode: Any) -> None:
    digits = matcher("start: /[0-9]+/")

    before = allowed(MaskFiller().fill([MaskWanted(0, digits)])[0])[0]
    verdicts = take(digits, encode("1"))
    after = allowed(MaskFiller().fill([MaskWanted(0, digits)])[0])[0]

    assert verdicts == [None]
    assert not set(ENDS) & set(before)
    assert set(after) == {*before, *ENDS}


def test_all_end_tokens_of_a_model_end_a_grammar() -> None:
    json_bytes = (DEMO / "tokenizer.json").read_bytes()
    two = grammar_tokenizer(json_bytes, [*ENDS, 9999], 1536)

    assert two.vocab_size == 1536
    assert two.ll.eos_tokens == [*ENDS]


def test_a_complete_grammar_ends_its_choice(matcher: Any, encode: Any) -> None:
    yes = matcher('start: "yes"')

    verdicts = take(yes, encode("yes"))

    assert verdicts[-1] == "stop"
    assert set(verdicts[:-1]) <= {None}


def test_a_token_outside_the_grammar_is_the_choices_failure(matcher: Any, encode: Any) -> None:
    yes = matcher('start: "yes"')

    assert take(yes, encode("n")) == ["error"]
    assert yes.failure is not None
    assert take(yes, encode("yes"))[-1] == "error"


def test_tokens_that_only_padding_has_never_come(matcher: Any, tokenizer: GrammarTokenizer) -> None:
    anything = matcher("start: /(?s).*/")

    found = allowed(MaskFiller().fill([MaskWanted(0, anything)])[0])[0]

    assert tokenizer.vocab_size == 1600
    assert max(found) < 1536
    assert 1 not in found  # special tokens are no text


def test_tokens_that_only_the_tokenizer_has_never_come() -> None:
    small = grammar_tokenizer((DEMO / "tokenizer.json").read_bytes(), [*ENDS], 500)
    compiled = CompiledGrammar("start: /(?s).*/", small)

    found = allowed(MaskFiller().fill([MaskWanted(0, compiled.new_matcher())])[0])[0]

    assert 400 < max(found) < 500


def test_a_forbidden_end_leaves_the_rest_and_a_grammar_with_nothing_else_stops(matcher: Any, encode: Any) -> None:
    digits, two = matcher("start: /[0-9]+/"), matcher("start: /[0-9]{2}/")
    take(digits, encode("1"))

    masks, verdicts = MaskFiller().fill(
        [MaskWanted(0, digits, (*ENDS, 31, 63)), MaskWanted(1, two, tuple(range(1536))), MaskWanted(2, digits, (5000,))]
    )

    assert verdicts == [None, "error", None]
    assert not set(ENDS) & set(allowed(masks)[0])
    assert set(allowed(masks)) == {0, 2}
    assert "together allow no token" in (two.failure or "")


def test_an_accepting_grammar_whose_only_token_is_forbidden_stops(matcher: Any, encode: Any) -> None:
    maybe = matcher('start: "a" "b"?')
    take(maybe, encode("a"))

    _, verdicts = MaskFiller().fill([MaskWanted(0, maybe, (*ENDS, *encode("b")))])

    assert verdicts == ["stop"]


def test_a_matcher_that_raises_fails_alone(matcher: Any, encode: Any) -> None:
    good, bad = matcher("start: /[0-9]+/"), matcher('start: "yes"')
    bad.ll = RaisingMatcher()

    masks, verdicts = MaskFiller().fill([MaskWanted(0, bad), MaskWanted(1, good)])

    assert verdicts == ["error", None]
    assert list(allowed(masks)) == [1]
    assert bad.failure == "RuntimeError"
    assert bad.take(5) == "error"


def test_a_resumed_choice_goes_on_where_it_was(bench: Any, encode: Any) -> None:
    compiled = bench.compile("start: /[0-9]{3}/")
    first = compiled.new_matcher()
    take(first, encode("12"))

    resumed = compiled.new_matcher(tuple(encode("12")))

    assert allowed(MaskFiller().fill([MaskWanted(0, resumed)])[0]) == allowed(
        MaskFiller().fill([MaskWanted(0, first)])[0]
    )
    assert take(resumed, encode("3")) == ["stop"]


def test_matchers_of_one_grammar_do_not_touch_each_other(bench: Any, encode: Any) -> None:
    compiled = bench.compile('start: "yes" | "no"')
    one, other = compiled.new_matcher(), compiled.new_matcher()

    take(one, encode("yes"))

    assert take(other, encode("no"))[-1] == "stop"


def test_patience_is_lost_by_slow_operations_only(bench: Any) -> None:
    matcher = bench.compile("start: /[0-9]+/").new_matcher()

    for _ in range(1000):
        matcher.charge(0.005)
    patient = matcher.failure
    matcher.charge(0.6)

    assert patient is None
    assert "takes too long for each token" in (matcher.failure or "")


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoTokenizerError, match=r"tokenizer\.json"):
        load_grammar_tokenizer(tmp_path, 100)


def test_a_model_without_an_end_says_so() -> None:
    with pytest.raises(NoTokenizerError, match="no end token"):
        grammar_tokenizer((DEMO / "tokenizer.json").read_bytes(), [], 1536)


def test_choices_outlive_a_lexer_that_they_filled_together_and_new_ones_get_another(bench: Any) -> None:
    text = "start: /(.*[a-m].{10}[n-z])*/"
    compiled = bench.compile(text)
    matchers = [compiled.new_matcher() for _ in range(12)]
    filler, rng = MaskFiller(), random.Random(0)

    for _ in range(80):
        masks, verdicts = filler.fill([MaskWanted(row, matcher) for row, matcher in enumerate(matchers)])
        assert verdicts == [None] * len(matchers)
        for row, ways in allowed(masks).items():
            assert matchers[row].take(rng.choice([token for token in ways if token not in ENDS])) is None

    assert compiled.is_worn
    assert bench.compiler.find(digest_of(text)) is None
    assert bench.compile(text) is not compiled
    assert bench.compiler.find(digest_of(text)) is not compiled
