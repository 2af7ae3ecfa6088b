"""The same requests get the same tokens however the engine is set up and whoever else is served."""

import pytest

from quire_worker.request import SamplingParams, Submit

MAX_TOKENS = 40
MAX_EXCUSES = 2
"""Near ties (see EXCUSED_GAP in conftest.py) over all requests of one comparison."""


def requests(prompts):
    """Greedy and random, with everything that shapes a token."""
    shared = prompts[-1]
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 3},
        {"temperature": 0.0, "presence_penalty": 1.0, "frequency_penalty": 0.7},
        {"seed": 11},
        {"seed": 2**64 - 3, "top_k": 20, "top_p": 0.9, "logprobs": 0},
        {"seed": 5, "min_p": 0.05, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
        {"seed": 6, "logit_bias": ((7, 4.0), (8, -100.0), (9, 2.5)), "logprobs": 5},
        {"seed": 7, "stop_token_ids": tuple(range(40)), "min_tokens": 12},
        {"seed": 8, "stop_token_ids": tuple(range(60))},
        {"seed": 9, "temperature": 0.7, "top_k": 5, "presence_penalty": -0.5},
        {"temperature": 0.0, "eos_token_ids": tuple(range(0, 320, 5)), "min_tokens": 5},
        {"seed": 10, "eos_token_ids": tuple(range(0, 320, 3)), "ignore_eos": True},
        {
            "seed": 12,
            "allowed_token_ids": tuple(range(0, 320, 16)),
            "bad_words": tuple((t, t) for t in range(0, 320, 16)),
        },
        {
            "temperature": 0.0,
            "bad_words": (*((t,) for t in range(40)), *((t, u) for t in range(40, 320, 7) for u in (t, 99))),
        },
    ]
    bodies = [shared[:150], *prompts[-len(kinds) + 2 :], [*shared[:150], 1, 2, 3]]
    return [
        Submit(
            request_id=str(i),
            prompt_token_ids=body,
            sampling=SamplingParams(**{"max_tokens": MAX_TOKENS, **kind}),
        )
        for i, (kind, body) in enumerate(zip(kinds, bodies[: len(kinds)], strict=True))
    ]


@pytest.fixture(scope="module")
def submits(mixed_prompts):
    return requests(mixed_prompts)


@pytest.fixture(scope="module")
def baseline(checkpoint, submits):
    """Each model's outcomes, one request at a time: nothing shared, nobody else there."""
    made = {}

    def get(name, side):
        if name not in made:
            engine = side(checkpoint(name), caching=False)
            made[name] = {key: value for submit in submits for key, value in engine.generate([submit]).items()}
        return made[name]

    return get


@pytest.fixture
def num_excused(oracle, submits):
    """Counts differences that a near tie excuses; any other fails."""

    def compare(name, expected, actual):
        assert expected.keys() == actual.keys()
        excused = 0
        for submit in submits:
            a, b = (side[submit.request_id, 0] for side in (expected, actual))
            if a.token_ids == b.token_ids:
                assert a.finish_reason == b.finish_reason
                assert_logprobs_agree(a.logprobs, b.logprobs)
                continue
            pairs = zip(a.token_ids, b.token_ids, strict=False)
            first = next(i for i, (x, y) in enumerate(pairs) if x != y)
            gap = oracle(name).gap(submit.prompt_token_ids, a.token_ids[:first], submit.sampling)
            assert gap <= 1e-4, f"request {submit.request_id} differs at {first}, gap {gap}"
            excused += 1
        return excused

    return compare


def assert_logprobs_agree(expected, actual):
    assert len(expected) == len(actual)
    for a, b in zip(expected, actual, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
        assert a.top_logprobs == pytest.approx(b.top_logprobs, abs=1e-3)


def test_tokens_are_those_that_the_rules_give_on_transformers_logits(oracle, side, submits, baseline):
    outcomes = baseline("llama", side)

    for submit in submits:
        output = outcomes[submit.request_id, 0].token_ids
        difference = oracle("llama").first_difference(submit.prompt_token_ids, output, submit.sampling)
        assert difference is None, f"request {submit.request_id}"


def test_logprobs_are_of_the_raw_logits(oracle, side, submits, baseline):
    outcomes = baseline("llama", side)

    for submit in submits:
        outcome, k = outcomes[submit.request_id, 0], submit.sampling.logprobs
        assert len(outcome.logprobs) == (0 if k is None else len(outcome.token_ids))
        if k is not None:
            prompt = submit.prompt_token_ids
            logits = oracle("llama").logits([*prompt, *outcome.token_ids[:-1]])[len(prompt) - 1 :]
            for row, token_id, entry in zip(logits.log_softmax(-1), outcome.token_ids, outcome.logprobs, strict=True):
                assert entry.logprob == pytest.approx(float(row[token_id]), abs=1e-3)
                assert entry.rank == int((row > row[token_id] + 1e-6).sum()) + 1
                assert list(entry.top_ids) == row.topk(k).indices.tolist()
                assert list(entry.top_logprobs) == pytest.approx(row.topk(k).values.tolist(), abs=1e-3)


def test_min_tokens_and_stop_tokens_end_choices_where_they_should(side, submits, baseline):
    outcomes = baseline("llama", side)

    for submit in submits:
        outcome, sampling = outcomes[submit.request_id, 0], submit.sampling
        ending = set(sampling.ending_token_ids)
        assert not ending & set(outcome.token_ids[:-1])
        if outcome.finish_reason == "stop":
            assert outcome.token_ids[-1] in ending
            assert len(outcome.token_ids) > sampling.min_tokens
        else:
            assert len(outcome.token_ids) == MAX_TOKENS
    assert {outcome.finish_reason for outcome in outcomes.values()} == {"stop", "length"}


SETUPS = {
    "together": {"caching": False},
    "together-depth-2": {"caching": False, "depth": 2},
    "prefix-cache": {},
    "chunks-of-16": {"chunk": 16, "rows": 16},
    "chunks-of-16-depth-2": {"chunk": 16, "rows": 16, "depth": 2},
    "tiny-pool": {"blocks": 33, "rows": 12},
    "tiny-pool-depth-2-chunks": {"blocks": 33, "rows": 12, "depth": 2, "chunk": 32},
    "few-rows": {"rows": 3},
    "reference-ops": {"ops": "reference", "caching": False, "chunk": 64},
}


@pytest.mark.parametrize("setup", SETUPS)
def test_llama_tokens_do_not_depend_on_the_setup(setup, checkpoint, side, submits, baseline, num_excused):
    engine = side(checkpoint("llama"), **SETUPS[setup])

    outcomes = engine.generate(submits)

    assert num_excused("llama", baseline("llama", side), outcomes) <= MAX_EXCUSES
    if "tiny-pool" in setup:
        assert engine.scheduler.counters.num_preemptions > 0


@pytest.mark.parametrize("name", ["mistral", "qwen2-mixed-windows", "qwen3-moe"])
@pytest.mark.parametrize("setup", ["together-depth-2", "prefix-cache", "chunks-of-16", "tiny-pool-depth-2-chunks"])
def test_other_models_tokens_do_not_depend_on_the_setup(name, setup, checkpoint, side, submits, baseline, num_excused):
    changes = SETUPS[setup]
    if name == "qwen2-mixed-windows" and "blocks" in changes:
        changes = {**changes, "blocks": 1 + 3 * (changes["blocks"] - 1)}

    outcomes = side(checkpoint(name), **changes).generate(submits)

    assert num_excused(name, baseline(name, side), outcomes) <= MAX_EXCUSES


def test_a_second_round_served_from_the_prefix_cache_gets_the_same_tokens(
    checkpoint, side, submits, baseline, num_excused
):
    engine = side(checkpoint("llama"))
    engine.generate(submits)

    outcomes = engine.generate(submits)

    assert engine.scheduler.counters.num_cached_tokens > 300
    assert num_excused("llama", baseline("llama", side), outcomes) <= MAX_EXCUSES


def test_four_choices_of_a_seeded_request_are_four_requests_with_the_seeds(checkpoint, side, mixed_prompts):
    prompt = mixed_prompts[-1][:75]
    together = SamplingParams(max_tokens=MAX_TOKENS, seed=2**64 - 2, frequency_penalty=0.3)
    alone = [
        SamplingParams(max_tokens=MAX_TOKENS, seed=(2**64 - 2 + i) % 2**64, frequency_penalty=0.3) for i in range(4)
    ]

    choices = side(checkpoint("llama")).generate(
        [Submit(request_id="n", prompt_token_ids=prompt, sampling=together, n=4)]
    )

    singles = side(checkpoint("llama"), caching=False)
    for i, sampling in enumerate(alone):
        single = singles.generate([Submit(request_id=str(i), prompt_token_ids=prompt, sampling=sampling)])
        assert choices["n", i].token_ids == single[str(i), 0].token_ids
    assert len({tuple(outcome.token_ids) for outcome in choices.values()}) == 4


def test_a_request_gets_the_same_tokens_among_thirty_one_others(checkpoint, side, submits, baseline, mixed_prompts):
    others = [
        Submit(
            request_id=f"other-{i}",
            prompt_token_ids=mixed_prompts[i][::-1],
            sampling=SamplingParams(max_tokens=20, seed=i),
        )
        for i in range(20)
    ]

    outcomes = side(checkpoint("llama")).generate([*others[:10], *submits, *others[10:]])

    for key, outcome in baseline("llama", side).items():
        assert outcomes[key].token_ids == outcome.token_ids
