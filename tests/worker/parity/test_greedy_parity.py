"""Greedy tokens equal transformers', in float32, over every architecture and as one continuous batch."""

import pytest
import torch

from quire_worker.request import SamplingParams

MAX_TOKENS = 64
GREEDY = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)


def test_greedy_tokens_equal_transformers(model_name, checkpoint, oracle, side, mixed_prompts):
    engine = side(checkpoint(model_name), chunk=48, depth=2)

    outputs = engine.greedy(mixed_prompts, MAX_TOKENS)

    assert [len(output) for output in outputs] == [MAX_TOKENS] * len(mixed_prompts)
    differences = [
        oracle(model_name).first_difference(prompt, output, GREEDY)
        for prompt, output in zip(mixed_prompts, outputs, strict=True)
    ]
    assert differences == [None] * len(mixed_prompts)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3-moe"])
def test_greedy_tokens_equal_those_of_transformers_own_generate(name, checkpoint, oracle, side, mixed_prompts):
    prompts = mixed_prompts[4::6]

    outputs = side(checkpoint(name)).greedy(prompts, 24)

    for prompt, output in zip(prompts, outputs, strict=True):
        prompt_ids = torch.tensor([prompt])
        generated = oracle(name).model.generate(
            prompt_ids, attention_mask=torch.ones_like(prompt_ids), max_new_tokens=24, do_sample=False
        )
        assert output == generated[0, len(prompt) :].tolist()


def test_greedy_text_is_not_one_repeated_token(model_name, checkpoint, side, mixed_prompts):
    outputs = side(checkpoint(model_name)).greedy(mixed_prompts, 16)

    assert sum(len(set(output)) > 1 for output in outputs) > len(outputs) // 2
