"""Log-probabilities of prompts equal transformers', however the engine came to compute them, and change nobody else's tokens."""

import pytest
import torch

from quire_kernels.ops import load_ops
from quire_worker.execution.prompt_scores import Span, score
from quire_worker.request import SamplingParams, Submit

TOP = 3


def submits_of(prompts, **sampling):
    values = {"max_tokens": 4, "seed": 3, "prompt_logprobs": TOP} | sampling
    return [
        Submit(request_id=str(i), prompt_token_ids=prompt, sampling=SamplingParams(**values))
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def some_prompts(mixed_prompts):
    return [mixed_prompts[i] for i in (0, 1, 5, 8, 12, 16, 19)]


@pytest.fixture
def assert_equals_oracle(oracle):
    def check(name, prompt, outcome, room=1e-4):
        logprobs = oracle(name).logits(prompt).log_softmax(-1)[:-1]
        wanted = logprobs.gather(-1, torch.tensor(prompt[1:], dtype=torch.int64)[:, None])[:, 0]
        assert outcome.prompt_values == pytest.approx(wanted.tolist(), abs=room)
        # Two likely tokens may be nearer to each other than two implementations are: they are the likeliest if their values are.
        ids = torch.tensor(outcome.prompt_ids, dtype=torch.int64).view(-1, TOP)
        assert [len(set(place)) for place in ids.tolist()] == [TOP] * (len(prompt) - 1)
        values = logprobs.topk(TOP).values.flatten().tolist()
        assert logprobs.gather(-1, ids).flatten().tolist() == pytest.approx(values, abs=room)

    return check


def test_they_equal_transformers_in_chunks_and_in_company(
    model_name, checkpoint, side, some_prompts, assert_equals_oracle
):
    engine = side(checkpoint(model_name), chunk=40, rows=4, depth=2)

    outcomes = engine.generate(submits_of(some_prompts))

    for i, prompt in enumerate(some_prompts):
        assert_equals_oracle(model_name, prompt, outcomes[str(i), 0])


@pytest.mark.parametrize(
    "setting",
    [
        {"ops": "cpu"},
        {"ops": "cpu-torch", "chunk": 50},
        {"ops": "reference"},
        {"ops": "reference", "resident": True, "chunk": 33, "depth": 2},
    ],
)
def test_they_equal_transformers_on_every_road(checkpoint, side, some_prompts, assert_equals_oracle, setting):
    outcomes = side(checkpoint("qwen2-mixed-windows"), **setting).generate(submits_of(some_prompts))

    for i, prompt in enumerate(some_prompts):
        assert_equals_oracle("qwen2-mixed-windows", prompt, outcomes[str(i), 0])


def test_they_are_the_same_to_the_bit_whole_in_chunks_preempted_and_for_any_number_of_choices(
    checkpoint, side, some_prompts
):
    alone = side(checkpoint("llama"), caching=False)
    expected = {}
    for submit in submits_of(some_prompts):
        expected |= alone.generate([submit])
    settings = [{"chunk": 33}, {"chunk": 40, "blocks": 30, "depth": 2}, {"chunk": 57, "rows": 3}]
    for setting in settings:
        engine = side(checkpoint("llama"), **setting)

        outcomes = engine.generate(submits_of(some_prompts, max_tokens=40))

        for key, outcome in expected.items():
            assert outcomes[key].prompt_bytes == outcome.prompt_bytes
        if "blocks" in setting:
            assert engine.scheduler.counters.num_preemptions > 0
    many = [Submit(request_id=s.request_id, prompt_token_ids=s.prompt_token_ids, sampling=s.sampling, n=3)
            for s in submits_of(some_prompts)]  # fmt: skip
    outcomes = side(checkpoint("llama")).generate(many)
    assert [outcomes[key].prompt_bytes for key in expected] == [o.prompt_bytes for o in expected.values()]
    assert {outcome.prompt_logprobs for (_, choice), outcome in outcomes.items() if choice} == {None}


def test_a_prompt_that_is_scored_does_not_read_the_cache_but_writes_it(checkpoint, side, mixed_prompts):
    prompt = mixed_prompts[-1]
    engine = side(checkpoint("llama"))

    first = engine.generate(submits_of([prompt]))
    again = engine.generate(submits_of([prompt]))
    cached = engine.scheduler.counters.num_cached_tokens
    plain = engine.generate(submits_of([prompt], prompt_logprobs=None))

    assert cached == 0
    assert engine.scheduler.counters.num_cached_tokens == len(prompt) // 16 * 16
    assert first["0", 0].prompt_bytes == again["0", 0].prompt_bytes
    assert first["0", 0].token_ids == again["0", 0].token_ids == plain["0", 0].token_ids


@pytest.mark.parametrize("name", ["llama", "qwen3-moe"])
def test_tokens_and_logprobs_of_others_stay_the_same_to_the_bit(name, checkpoint, side, mixed_prompts):
    def others():
        return [
            Submit(
                request_id=f"other-{i}",
                prompt_token_ids=prompt,
                sampling=SamplingParams(max_tokens=20, seed=i, logprobs=2),
            )
            for i, prompt in enumerate(mixed_prompts[6:12])
        ]

    plain = side(checkpoint(name), chunk=48, caching=False).generate(others())
    beside = side(checkpoint(name), chunk=48, caching=False).generate([*others(), *submits_of(mixed_prompts[12:16])])

    for key, outcome in plain.items():
        assert beside[key].token_ids == outcome.token_ids
        assert beside[key].logprobs == outcome.logprobs


def test_in_bfloat16_they_are_as_far_from_float32_as_transformers_own(checkpoint, oracle, side, some_prompts):
    outcomes = side(checkpoint("llama"), dtype="bfloat16", chunk=64).generate(submits_of(some_prompts))

    theirs = type(oracle("llama"))(checkpoint("llama"), torch.bfloat16)
    errors, their_errors = [], []
    for i, prompt in enumerate(some_prompts[1:], 1):
        places = torch.tensor(prompt[1:])[:, None]
        exact, rounded = (
            model.logits(prompt).log_softmax(-1)[:-1].gather(-1, places)[:, 0] for model in (oracle("llama"), theirs)
        )
        errors.append((torch.tensor(outcomes[str(i), 0].prompt_values) - exact).abs().max())
        their_errors.append((rounded - exact).abs().max())
    assert max(errors) <= 2 * max(their_errors)


class LinearHead:
    """Counts how many rows it is given at a time."""

    def __init__(self):
        self.weight = torch.randn(90, 8, generator=torch.Generator().manual_seed(1))
        self.sizes = []

    def logits(self, hidden_SE):
        self.sizes.append(hidden_SE.shape[0])
        return hidden_SE @ self.weight.T


@pytest.mark.parametrize(("max_logits", "sizes"), [(90 * 100, [25]), (90 * 10, [10, 10, 5]), (1, [1] * 25)])
def test_the_heads_memory_is_bounded(max_logits, sizes):
    head, hidden = LinearHead(), torch.randn(30, 8, generator=torch.Generator().manual_seed(2))
    scored, targets = torch.arange(2, 27), torch.arange(25) * 3

    found = score(head, load_ops("reference"), hidden, scored, targets, [Span(0, 1, 25, 4)], 90, max_logits=max_logits)

    assert head.sizes == sizes
    logprobs = (hidden[2:27] @ head.weight.T).log_softmax(-1)
    assert found.values.chosen_logprobs.tolist() == pytest.approx(logprobs[range(25), targets].tolist(), abs=1e-5)
    assert found.values.ids.tolist() == logprobs.topk(4).indices.tolist()
