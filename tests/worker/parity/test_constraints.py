"""Allowed tokens, bad words and named tokens: what the engine draws obeys them, and is what plain rules give on transformers' logits."""

import random

import pytest
import torch

from quire_worker.request import FAILED_NO_TOKEN, SamplingParams, Submit

ROADS = [
    {"ops": "cpu"},
    {"ops": "cpu-torch", "depth": 2},
    {"ops": "reference", "resident": True, "depth": 2, "chunk": 40},
    {"ops": "cpu", "blocks": 24, "chunk": 40, "depth": 2},
]


def holds(output, word):
    return any(tuple(output[i : i + len(word)]) == word for i in range(len(output)))


@pytest.mark.parametrize("setting", ROADS)
@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral"])
def test_what_is_forbidden_never_comes(name, setting, checkpoint, side, mixed_prompts):
    rng = random.Random(str((name, setting)))
    submits = []
    for i in range(12):
        allowed = tuple(rng.sample(range(320), rng.choice((2, 5, 40))))
        words = tuple(
            tuple(rng.choice(allowed) for _ in range(rng.choice((1, 2, 2, 3)))) for _ in range(rng.choice((0, 3, 8)))
        )
        # At least one of the allowed tokens may always come.
        words = tuple(word for word in words if word[-1] != allowed[0])
        values = {"allowed_token_ids": allowed if i % 3 else (), "bad_words": words, "max_tokens": 30, "seed": i}
        sampling = SamplingParams(**values, temperature=(0.0, 1.0, 1.8)[i % 3])
        submits.append(
            Submit(request_id=str(i), prompt_token_ids=mixed_prompts[i][-60:], sampling=sampling, n=1 + i % 2)
        )

    outcomes = side(checkpoint(name), rows=6, **setting).generate(submits)

    assert len(outcomes) == 18
    for submit in submits:
        for choice in range(submit.n):
            outcome, sampling = outcomes[submit.request_id, choice], submit.sampling
            assert len(outcome.token_ids) == 30
            assert not sampling.allowed_token_ids or set(outcome.token_ids) <= set(sampling.allowed_token_ids)
            assert not any(holds(outcome.token_ids, word) for word in sampling.bad_words)


def test_a_word_of_several_tokens_forbids_its_last_one_only_behind_the_others(checkpoint, oracle, side, mixed_prompts):
    prompt = mixed_prompts[9]
    engine = side(checkpoint("llama"))
    plain = engine.greedy([prompt], 12)[0]
    cases = [(plain[3], plain[4]), (plain[0],), tuple(plain[5:9]), (prompt[-1], plain[0]), (plain[4] ^ 1, plain[5])]
    submits = [
        Submit(
            request_id=str(i),
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=12, temperature=0.0, bad_words=(word,)),
        )
        for i, word in enumerate(cases)
    ]

    outcomes = [outcome.token_ids for outcome in engine.generate(submits).values()]

    assert outcomes[0][:4] == plain[:4] and outcomes[0][4] != plain[4]
    assert outcomes[1][0] != plain[0]
    assert outcomes[2][:8] == plain[:8] and outcomes[2][8] != plain[8]
    assert outcomes[3] == plain  # the prompt's tokens are not the output's
    assert outcomes[4] == plain
    for submit, output in zip(submits, outcomes, strict=True):
        assert oracle("llama").first_difference(prompt, output, submit.sampling) is None


@pytest.mark.parametrize("setting", ROADS[:3])
def test_a_row_that_nothing_is_left_for_fails_alone(setting, checkpoint, side, mixed_prompts):
    def others():
        return [
            Submit(request_id=f"o{i}", prompt_token_ids=prompt, sampling=SamplingParams(max_tokens=12, seed=i))
            for i, prompt in enumerate(mixed_prompts[3:7])
        ]

    stuck = SamplingParams(max_tokens=12, seed=5, allowed_token_ids=(7, 9), bad_words=((7, 7), (9, 7), (9,)))
    also = SamplingParams(max_tokens=9, temperature=0.0, allowed_token_ids=(3,), stop_token_ids=(3,), min_tokens=1)
    plain = side(checkpoint("llama"), **setting).generate(others())

    outcomes = side(checkpoint("llama"), **setting).generate(
        [
            Submit(request_id="stuck", prompt_token_ids=[1, 2, 3], sampling=stuck),
            *others(),
            Submit(request_id="also", prompt_token_ids=[4, 5], sampling=also),
        ]
    )

    assert (outcomes["stuck", 0].token_ids, outcomes["stuck", 0].error_code) == ([7], FAILED_NO_TOKEN)
    assert (outcomes["also", 0].token_ids, outcomes["also", 0].error_code) == ([], FAILED_NO_TOKEN)
    for key, outcome in plain.items():
        assert outcomes[key].token_ids == outcome.token_ids


@pytest.mark.parametrize("setting", ROADS[:3])
def test_named_tokens_get_their_log_probabilities(setting, checkpoint, oracle, side, mixed_prompts):
    prompt, named = mixed_prompts[11], (300, 5, 17, 5)
    kinds = [
        {"logprobs": 0, "logprob_token_ids": named},
        {"logprobs": 2},
        {},
        {"logprobs": 4, "logprob_token_ids": (8,), "allowed_token_ids": (1, 2)},
    ]
    submits = [
        Submit(
            request_id=str(i), prompt_token_ids=prompt, sampling=SamplingParams(max_tokens=5, temperature=0.0, **kind)
        )
        for i, kind in enumerate(kinds)
    ]

    outcomes = side(checkpoint("llama"), **setting).generate(submits)

    for i, ids in ((0, named), (3, (8,))):
        outcome = outcomes[str(i), 0]
        logprobs = oracle("llama").logits([*prompt, *outcome.token_ids[:-1]])[len(prompt) - 1 :].log_softmax(-1)
        for row, token_id, entry in zip(logprobs, outcome.token_ids, outcome.logprobs, strict=True):
            assert entry.top_ids == ids
            assert entry.top_logprobs == pytest.approx(row[list(ids)].tolist(), abs=1e-4)
            assert entry.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
    assert [len(entry.top_ids) for entry in outcomes["1", 0].logprobs] == [2] * 5
    assert outcomes["2", 0].logprobs == []
    assert torch.tensor(outcomes["0", 0].token_ids).tolist() == outcomes["1", 0].token_ids
