"""Quantised on a CPU: int8 weights alone are what transformers computes with rounded weights; how far logits are from the checkpoint's."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_worker.request import SamplingParams
from tests.worker.parity.last_logits import last_logits

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)


@pytest.fixture
def rounded(checkpoint, tmp_path):
    """Name -> a checkpoint whose projections are what int8 with a scale for each output holds of them."""

    def make(name):
        folder = shutil.copytree(checkpoint(name), tmp_path / name)
        tensors = load_file(folder / "model.safetensors")
        for key, weight in tensors.items():
            if key.endswith("_proj.weight"):
                scale = weight.abs().amax(dim=1, keepdim=True) / 127
                tensors[key] = torch.round(weight / scale) * scale
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("name", ["llama-tied-bias", "qwen2", "qwen3"])
def test_int8_weights_alone_give_the_tokens_and_logits_of_rounded_weights(
    name, checkpoint, rounded, oracle, side, mixed_prompts
):
    prompts = mixed_prompts[4::3]
    theirs = type(oracle(name))(rounded(name))
    engine = side(checkpoint(name), quantization="int8-weight-only")

    outputs = engine.greedy(prompts, GREEDY.max_tokens)
    logits = last_logits(side(checkpoint(name), quantization="int8-weight-only"), prompts)

    expected = torch.stack([theirs.logits(prompt)[-1] for prompt in prompts])
    assert logits.sub(expected).norm() / expected.norm() < 1e-5
    pairs = zip(prompts, outputs, strict=True)
    assert [theirs.first_difference(prompt, output, GREEDY) for prompt, output in pairs] == [None] * len(prompts)


@pytest.mark.parametrize(
    ("dtype", "quantization", "most"),
    [
        ("bfloat16", "int8", 0.015),
        ("bfloat16", "int8-weight-only", 0.006),
        ("float32", "int8-weight-only", 0.006),
    ],
)
def test_quantised_logits_of_a_trained_model_are_this_far_from_float32s_and_choose_the_same_token(
    dtype, quantization, most, side, mixed_prompts
):
    prompts = mixed_prompts[4:]
    exact = last_logits(side(DEMO, ops="reference"), prompts)

    logits = last_logits(side(DEMO, dtype=dtype, quantization=quantization), prompts)

    assert (logits - exact).norm(dim=1).div(exact.norm(dim=1)).mean() < most
    assert logits.argmax(dim=1).eq(exact.argmax(dim=1)).float().mean() >= 0.9
