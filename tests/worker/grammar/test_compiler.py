"""Grammars are compiled elsewhere, remembered, and what is monstrous ends only itself."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from quire_worker.grammar.compiler import Refused, digest_of
from quire_worker.grammar.limits import GrammarLimits
from quire_worker.grammar.matcher import CompiledGrammar

GOOD = 'start: "yes" | "no"'


def js(schema: Any) -> str:
    return "start: %json " + json.dumps(schema)


def chain(length: int) -> dict[str, Any]:
    """Each definition refers to the next: as deep as recursion goes, but flat as text."""
    defs: dict[str, Any] = {
        f"a{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(length)
    }
    return {"$defs": {**defs, f"a{length}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def explosion() -> dict[str, Any]:
    one = [
        {"anyOf": [{"properties": {f"p{i}": {"type": "string"}, f"q{i}": {"const": j}}} for j in range(8)]}
        for i in range(8)
    ]
    return {"allOf": one}


def multiples_of(number: int) -> str:
    """Short, and a lexer of as many states as the number is large."""
    return js({"type": "integer", "multipleOf": number})


HOSTILE: dict[str, tuple[str, str]] = {
    "no such type": (js({"type": "strin"}), "Invalid type: strin"),
    "a type that is a number": (js({"type": 5}), "type must be a string or array of strings"),
    "schema is a list": (js([1]), "schema must be an object or boolean"),
    "nothing matches": (js(False), "Unsatisfiable schema"),
    "contradiction": (js({"type": "integer", "minimum": 5, "maximum": 4}), "minimum (5) is greater than maximum (4)"),
    "keyword that is not obeyed": (js({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
    "reference to itself": (js({"$ref": "#"}), "no text matches it"),
    "loop of references": (
        js({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        "no text matches it",
    ),
    "loop through allOf": (
        js({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}, "$ref": "#/$defs/a"}),
        "circular references",
    ),
    "reference to the network": (js({"$ref": "http://127.0.0.1:1/x.json"}), "is not present"),
    "allOf that multiplies out": (js(explosion()), "schema too large"),
    "20,000 properties": (
        js({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}),
        "schema too large",
    ),
    "chain that overflows any stack": (js(chain(5000)), "too deeply nested"),
    "rules that overflow any stack": (
        "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(20_000)) + '\na20000: "x"',
        "too deeply nested",
    ),
    "patterns that cannot be combined": (
        js({"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.{{{30 + i}}}"} for i in range(10)]}),
        "Unable to determine if regex is empty",
    ),
    "regex that is not closed": ("start: /(a/", "unclosed group"),
    "regex that looks back": (r"start: /(a)\1/", "backreferences are not supported"),
    "regex nested 20,000 deep": ("start: /" + "(" * 20_000 + "a" + ")" * 20_000 + "/", "nest"),
    "grammar nested 20,000 deep": ("start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "too deeply nested"),
    "grammar of garbage": ("start: )(", "expecting rule, token or statement"),
    "rule that is not there": ("start: foo", 'unknown name: "foo"'),
    "rules that go round": ("start: a\na: b\nb: a", "no text matches it"),
    "repetitions that multiply": ("start: /((a{1,100}){1,100}){1,100}/", "too many expressions"),
    "repeated rules that multiply": ('start: (((("a"{1,1000}){1,1000}){1,1000}){1,1000})', "Current row has"),
    "a thousand ways to read everything": ('start: s\ns: s s s | "a" | "b" | s s | ""', "takes "),
    "100,000 strings": (js({"enum": [f"v{i}" for i in range(100_000)]}), "too big"),
    "text beyond every limit": ("start: " + '"' + "a" * 2_000_000 + '"', "is longer than"),
}


@pytest.mark.parametrize(("text", "words"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_grammar_is_refused_with_its_reason_and_the_next_one_compiles(
    bench: Any, text: str, words: str
) -> None:
    outcome = bench.compile(text)
    after = bench.compile(f'start: "{digest_of(text).hex()}"')

    assert isinstance(outcome, Refused)
    assert words in outcome.message
    assert len(outcome.message) <= 410
    assert "\n" not in outcome.message
    assert isinstance(after, CompiledGrammar)


@pytest.mark.parametrize(
    "text",
    [
        "start: /a{1,100000}/",
        "start: /((a|aa)*(b|bb)*)*c{5,5000}(x+x+)+y/",
        "start: /.*[ab].{200}.*[cd].{200}/",
        js({"enum": [f"v{i}" for i in range(10_000)]}),
        js({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
        js({"type": "string", "minLength": 10**6, "maxLength": 10**9}),
        js(chain(100)),
    ],
    ids=lambda text: text[:40],
)
def test_what_only_looks_monstrous_compiles(bench: Any, text: str) -> None:
    assert isinstance(bench.compile(text), CompiledGrammar)


def test_a_grammar_that_takes_too_long_is_ended_and_the_next_one_compiles(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(GrammarLimits(num_threads=1, compile_time_s=0.5))

    outcome = bench.compile(multiples_of(3_000_017))

    assert isinstance(outcome, Refused)
    assert "takes longer than 0.5 s" in outcome.message


def test_a_grammar_that_takes_all_memory_is_ended(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(GrammarLimits(num_threads=1, compile_memory_bytes=160 * 2**20))
    alternatives = " | ".join(f'b "v{i}"' for i in range(40_000))

    good = bench.compile(GOOD)
    outcome = bench.compile(f'start: a\na: {alternatives}\nb: "q"?')

    assert isinstance(good, CompiledGrammar)
    assert isinstance(outcome, Refused)


def test_both_outcomes_are_remembered_and_an_unknown_text_is_not(bench: Any) -> None:
    compiled, refused = bench.compile(GOOD), bench.compile("start: nowhere")

    assert bench.compiler.find(digest_of(GOOD)) is compiled
    assert bench.compiler.find(digest_of("start: nowhere")) is refused
    assert bench.compiler.find(digest_of("start: other")) is None


def test_the_least_recently_used_grammar_is_forgotten_first(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(GrammarLimits(num_threads=1, cache_bytes=150_000))
    texts = [f'start: "{name}"' for name in "abc"]

    bench.compile(texts[0])
    bench.compile(texts[1])
    bench.compiler.find(digest_of(texts[0]))
    bench.compile(texts[2])

    assert [bench.compiler.find(digest_of(text)) is not None for text in texts] == [True, False, True]


def test_a_short_text_that_takes_much_memory_counts_for_much(bench: Any) -> None:
    cheap, dear = (bench.compile(multiples_of(number)) for number in (7, 100_019))

    assert isinstance(cheap, CompiledGrammar)
    assert isinstance(dear, CompiledGrammar)
    assert dear.size_bytes > 20 * cheap.size_bytes


def test_a_text_asked_for_twice_is_compiled_once_and_the_queue_is_bounded(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(GrammarLimits(num_threads=1, max_waiting=2))
    texts = [f'start: "{name}"' for name in "abc"]

    taken = [bench.compiler.start(digest_of(text), text) for text in (texts[0], texts[0], texts[1], texts[2])]
    outcomes = bench.wait(2)

    assert taken == [True, True, True, False]
    assert [digest for digest, _ in outcomes] == [digest_of(text) for text in texts[:2]]
    assert bench.compiler.start(digest_of(texts[2]), texts[2])


def test_a_text_that_nobody_waits_for_is_not_compiled(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(GrammarLimits(num_threads=1))
    texts = [multiples_of(100_019), 'start: "left"', 'start: "right"']
    for text in texts:
        bench.compiler.start(digest_of(text), text)
    bench.compiler.forget(digest_of(texts[1]))

    ready = bench.wait(2)

    assert [digest for digest, _ in ready] == [digest_of(texts[0]), digest_of(texts[2])]
    assert bench.compiler.find(digest_of(texts[1])) is None


def test_closing_ends_what_is_being_tried_and_does_not_wait_for_it(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(GrammarLimits(num_threads=1, compile_time_s=600))
    bench.compile(GOOD)
    text = multiples_of(3_000_017)  # minutes
    assert bench.compiler.start(digest_of(text), text)

    bench.compiler.close()
    ((_, outcome),) = bench.wait(1, timeout_s=60)

    assert isinstance(outcome, Refused)
    assert not outcome.is_for_good


def test_a_grammar_that_proves_too_slow_while_serving_is_refused_from_then_on(bench: Any) -> None:
    text = 'start: "slow"'
    compiled = bench.compile(text)

    for _ in range(3):
        compiled.new_matcher().charge(0.6)

    assert compiled.num_too_slow == 3
    assert "takes too long for each token" in bench.compiler.find(digest_of(text)).message
