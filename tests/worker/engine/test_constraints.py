"""Choices under a grammar in a running engine: at every depth they match it, whatever happens around them."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from quire_worker.grammar.matcher import CompiledGrammar
from quire_worker.grammar.tokenizer import GrammarTokenizer, grammar_tokenizer
from quire_worker.plan import Handle, Runner, StepPlan, TokenMasks
from quire_worker.request import ChoiceOutput, SamplingParams, Submit

TOKENS = ["<s>", "</s>", *'{}[]":,', *"0123456789", *"abcdefgh", "face", "bad", '{"', '":', '",', "ab", "Ġ"]
EOS = 1
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "^[a-h]{1,6}$"},
        "b": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
        "c": {"enum": ["face", "bad"]},
    },
    "required": ["a", "b", "c"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
JSON = "start: %json " + json.dumps(SCHEMA)


@pytest.fixture(scope="module")
def tokenizer() -> GrammarTokenizer:
    """Of the Rig's 64 tokens fewer than all have text."""
    special = [
        {"id": i, "content": TOKENS[i], "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False} for i in range(2)
    ]  # fmt: skip
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(TOKENS)}, "merges": []}
    parts = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    made = {"version": "1.0", "added_tokens": special, "pre_tokenizer": parts, "decoder": parts, "model": model}
    return grammar_tokenizer(json.dumps(made).encode(), [EOS], 64)


class GrammarRig:
    """A Rig whose requests may have a grammar."""

    def __init__(self, rig: Any, tokenizer: GrammarTokenizer) -> None:
        self.rig = rig
        self._tokenizer = tokenizer

    def compile(self, text: str) -> CompiledGrammar:
        compiled = CompiledGrammar(text, self._tokenizer)
        assert compiled.error is None
        return compiled

    def submit(self, name: str, grammar: str | None = None, *, n: int = 1, prompt: int = 9, **sampling: Any) -> None:
        tokens = [(sum(name.encode()) + 5 * i) % 60 for i in range(prompt)]
        params = SamplingParams(**{"max_tokens": 100, "temperature": 1.0, "eos_token_ids": (EOS,), **sampling})
        submit = Submit(request_id=name, prompt_token_ids=tokens, n=n, sampling=params, grammar=grammar)
        assert self.rig.scheduler.add(submit) is None
        if grammar is not None:
            compiled = self.compile(grammar)
            self.rig.scheduler.constrain(name, [compiled.new_matcher() for _ in range(n)])

    def run(self) -> None:
        self.rig.run()
        self.rig.scheduler.check()

    def text(self, name: str, choice: int = 0) -> str:
        return text_of(self.rig.tokens[name, choice])

    def end(self, name: str, choice: int = 0) -> ChoiceOutput:
        found: ChoiceOutput = self.rig.ends[name, choice]
        return found


def text_of(tokens: Sequence[int]) -> str:
    return "".join(TOKENS[token] for token in tokens if token != EOS).replace("Ġ", " ")


@pytest.fixture
def engine(rig: Any, tokenizer: GrammarTokenizer) -> Callable[..., GrammarRig]:
    return lambda **options: GrammarRig(rig(**options), tokenizer)


def is_right(text: str) -> bool:
    found = json.loads(text)
    return (
        list(found) == ["a", "b", "c"]
        and 1 <= len(found["a"]) <= 6
        and set(found["a"]) <= set("abcdefgh")
        and len(found["b"]) <= 4
        and all(0 <= item <= 99 for item in found["b"])
        and found["c"] in ("face", "bad")
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_choice_matches_its_grammar_and_free_neighbours_keep_their_tokens(engine: Any, depth: int) -> None:
    alone, mixed = engine(), engine(depth=depth, rows=6)
    for name in "klm":
        alone.submit(name, prompt=20, max_tokens=30)
        mixed.submit(name, prompt=20, max_tokens=30)
        mixed.submit(f"json-{name}", JSON, n=3, seed=ord(name))

    alone.run()
    mixed.run()

    for name in "klm":
        assert mixed.rig.tokens[name, 0] == alone.rig.tokens[name, 0]
        texts = [mixed.text(f"json-{name}", choice) for choice in range(3)]
        assert all(is_right(text) for text in texts)
        assert [mixed.end(f"json-{name}", choice).finish_reason for choice in range(3)] == ["stop"] * 3
        assert len(set(texts)) > 1


@pytest.mark.parametrize("caching", [True, False])
def test_depth_chunks_and_preemption_change_no_token(engine: Any, caching: bool) -> None:
    roomy = engine(caching=caching)
    tight = [engine(depth=depth, blocks=22, budget=16, rows=6, caching=caching) for depth in (1, 2, 3)]
    for made in (roomy, *tight):
        for index in range(6):
            made.submit(f"r{index}", JSON, prompt=12, seed=index)
        made.run()

    texts = [roomy.text(f"r{index}") for index in range(6)]
    assert all(is_right(text) for text in texts)
    for made in tight:
        assert made.rig.scheduler.counters.num_preemptions > 0
        assert [made.text(f"r{index}") for index in range(6)] == texts
        assert made.rig.num_used_blocks == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_a_complete_grammar_ends_at_once_whatever_min_tokens_and_ignore_eos_say(engine: Any, depth: int) -> None:
    made = engine(depth=depth)
    made.submit("min", 'start: "ab"', min_tokens=50)
    made.submit("ignore", "start: /a{2,5}/", ignore_eos=True)
    made.submit("long", "start: /[ab]+/", min_tokens=12, max_tokens=90)
    made.submit("exact", 'start: "a" "b" "a"', max_tokens=2)

    made.run()

    assert (made.text("min"), made.end("min").finish_reason) == ("ab", "stop")
    assert (made.text("ignore"), made.end("ignore").finish_reason) == ("aaaaa", "stop")
    assert len(made.rig.tokens["long", 0]) > 12
    assert made.end("long").stop_token_id == EOS
    assert made.end("exact").finish_reason in {"length", "stop"}
    assert made.text("exact") in {"aba", "ab"}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_a_grammar_that_lets_nothing_follow_the_prompt_ends_when_the_prompts_scores_are_there(
    engine: Any, depth: int, n: int
) -> None:
    made = engine(depth=depth, budget=4)
    made.submit("scored", 'start: ""', n=n, ignore_eos=True, prompt_logprobs=1)
    made.submit("plain", 'start: ""', ignore_eos=True)

    made.run()

    ends = [made.end("scored", choice) for choice in range(n)]
    assert {end.finish_reason for end in [*ends, made.end("plain")]} == {"stop"}
    assert all(tokens == [] for tokens in made.rig.tokens.values())
    assert sum(part.num_tokens for part in ends[0].prompt_logprobs or ()) == 8
    assert all(end.prompt_logprobs is None for end in [*ends[1:], made.end("plain")])
    assert made.rig.scheduler.counters.num_generated_tokens == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_max_tokens_inside_a_grammar_is_length(engine: Any, depth: int) -> None:
    made = engine(depth=depth)
    made.submit("r", JSON, max_tokens=4)

    made.run()

    assert made.end("r").finish_reason == "length"
    assert len(made.rig.tokens["r", 0]) == 4


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_grammar_that_turns_out_to_allow_nothing_fails_alone(engine: Any, depth: int) -> None:
    made, alone = engine(depth=depth), engine()
    for each in (made, alone):
        each.submit("free", max_tokens=20)
    made.submit("bad", 'start: "a" x\nx: x "b"', n=2)
    made.submit("good", JSON)

    made.run()
    alone.run()

    assert [made.end("bad", choice).finish_reason for choice in (0, 1)] == ["error", "error"]
    assert made.end("bad").error_code == "grammar"
    assert made.end("bad").error
    assert is_right(made.text("good"))
    assert made.rig.tokens["free", 0] == alone.rig.tokens["free", 0]


@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_aborted_leaves_the_others_alone(engine: Any, depth: int) -> None:
    made = engine(depth=depth, rows=4)
    for index in range(6):
        made.submit(f"r{index}", JSON, n=2)

    for step in range(12):
        made.rig.step()
        if step % 3 == 0:
            made.rig.scheduler.abort(f"r{step // 3}", None if step % 2 else 1)
    made.run()

    assert is_right(made.text("r5", 1))
    assert made.rig.num_used_blocks == 0


class FailsAtTimes:
    """Every fifth step raises, when it is launched, sampled or waited for."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.num_steps = 0

    def launch(self, plan: StepPlan) -> Handle:
        self.num_steps += 1
        if self.num_steps % 10 == 5:
            raise RuntimeError("launch")
        return self._runner.launch(plan)

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        if self.num_steps % 10 == 9:
            self.num_steps += 1
            raise RuntimeError("sample")
        self._runner.sample(handle, masks)

    def close(self) -> None:
        self._runner.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_steps_that_raise_lose_no_place_in_a_grammar(engine: Any, depth: int) -> None:
    made = engine(depth=depth, wrap=FailsAtTimes)
    for index in range(4):
        made.submit(f"r{index}", JSON)

    made.run()

    ends = [made.end(f"r{index}") for index in range(4)]
    assert all(is_right(made.text(end.request_id)) for end in ends if end.finish_reason == "stop")
    assert any(end.finish_reason == "stop" for end in ends)
    assert made.rig.num_used_blocks == 0


class MaskLog:
    """Writes down which plans were sampled with masks, and whose rows they had."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.masked: list[list[int]] = []
        self.announced: list[bool] = []

    def launch(self, plan: StepPlan) -> Handle:
        self.announced.append(plan.has_masks)
        return self._runner.launch(plan)

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        self.masked.append([] if masks is None else masks.rows)
        self._runner.sample(handle, masks)

    def close(self) -> None:
        self._runner.close()


def test_only_rows_that_are_sampled_under_a_grammar_have_masks_and_their_plans_say_so(engine: Any) -> None:
    made = engine(wrap=MaskLog, budget=16)
    made.submit("long", 'start: "ab"', prompt=40)
    made.submit("free", prompt=4, max_tokens=2)

    made.run()

    masked = made.rig.runner.masked
    assert masked[:2] == [[], []]
    assert [0] in masked
    assert all(rows in ([], [0]) for rows in masked)
    assert [bool(rows) for rows in masked] == made.rig.runner.announced
