"""A row whose logits are not finite fails alone: its neighbours' tokens stay the same to the bit, on every road."""

import pytest

from quire_contract.block_hash import ExtraKeys
from quire_worker.request import FAILED_NOT_FINITE, SamplingParams, Submit

SPOILT = 319
"""The token whose embedding is not finite in the damaged checkpoint."""
ROADS = [
    {"ops": "cpu"},
    {"ops": "cpu", "dtype": "bfloat16", "chunk": 40, "depth": 2},
    {"ops": "cpu-torch"},
    {"ops": "reference", "resident": True, "depth": 2, "chunk": 40},
]


def healthy(prompts):
    kinds = ({"temperature": 0.0}, {"seed": 4, "top_p": 0.9}, {"seed": 5, "logprobs": 2, "frequency_penalty": 0.4})
    bad = ((SPOILT,),)  # they must not draw it either
    return [
        Submit(
            request_id=f"healthy-{i}",
            prompt_token_ids=[token for token in prompt if token != SPOILT],
            sampling=SamplingParams(max_tokens=24, bad_words=bad, **kinds[i % 3]),
        )
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("setting", ROADS)
def test_a_broken_row_fails_alone(setting, damaged, side, mixed_prompts):
    plain = side(damaged, rows=8, **setting).generate(healthy(mixed_prompts[2:8]))
    kinds = ({"temperature": 0.0}, {"seed": 1}, {"seed": 2, "top_k": 3}, {"seed": 3, "prompt_logprobs": 1})
    broken = [
        Submit(
            request_id=f"broken-{i}",
            prompt_token_ids=[5, 6, SPOILT, *mixed_prompts[10][: 3 + 20 * i]],
            sampling=SamplingParams(max_tokens=9, **kind),
            n=1 + i % 2,
        )
        for i, kind in enumerate(kinds)
    ]

    engine = side(damaged, rows=8, **setting)
    mixed = [submit for pair in zip(healthy(mixed_prompts[2:6]), broken, strict=True) for submit in pair]
    outcomes = engine.generate([*mixed, *healthy(mixed_prompts[2:8])[4:]])

    for submit in broken:
        for choice in range(submit.n):
            outcome = outcomes[submit.request_id, choice]
            assert (outcome.finish_reason, outcome.error_code) == ("error", FAILED_NOT_FINITE)
            assert outcome.token_ids == []
    for key, outcome in plain.items():
        assert outcome.error_code is None
        assert outcomes[key].token_ids == outcome.token_ids
        if not setting.get("resident"):  # torch's own matrices change their sums with the number of rows
            assert outcomes[key].logprobs == outcome.logprobs
    assert engine.scheduler.num_free_blocks == engine.info.num_blocks - 1


def test_what_a_broken_row_computed_is_found_by_nobody(damaged, side):
    engine = side(damaged)
    prompt = [5] * 15 + [SPOILT] + [7] * 20
    submit = Submit(request_id="a", prompt_token_ids=prompt, sampling=SamplingParams(max_tokens=3))

    engine.generate([submit])

    chain = engine.scheduler._kv.new_chain(ExtraKeys(), prompt)
    assert engine.scheduler._kv.match_prefix(chain, len(prompt)).num_tokens == 0
