"""Rotary embedding against transformers, for every scaling, and each path against the reference."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from quire_kernels.ops import OpsName, load_ops
from quire_kernels.rotary import LinearScaling, Llama3Scaling, RotaryConfig, YarnScaling, rotary_cos_sin

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
MSCALES = {"mscale": 0.8, "mscale_all_dim": 0.5}
YARN_TYPE = {"rope_type": "yarn", **YARN}
SCALINGS = [
    pytest.param({"rope_type": "default"}, None, id="default"),
    pytest.param({"rope_type": "linear", "factor": 2.5}, LinearScaling(factor=2.5), id="linear"),
    pytest.param(
        {"rope_type": "llama3", **LLAMA3},
        Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64),
        id="llama3",
    ),
    pytest.param(YARN_TYPE, YarnScaling(factor=4.0, original_max_position=64), id="yarn"),
    pytest.param(
        YARN_TYPE | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3},
        YarnScaling(factor=4.0, original_max_position=64, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3),
        id="yarn with betas and attention factor",
    ),
    pytest.param(
        YARN_TYPE | MSCALES, YarnScaling(factor=4.0, original_max_position=64, **MSCALES), id="yarn with mscale"
    ),
    pytest.param(
        YARN_TYPE | {"truncate": False},
        YarnScaling(factor=4.0, original_max_position=64, truncate=False),
        id="yarn without truncation",
    ),
]


def transformers_cos_sin(parameters: dict[str, float], x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )
    return LlamaRotaryEmbedding(config)(x, positions[None])


def table(scaling: LinearScaling | Llama3Scaling | YarnScaling | None) -> Tensor:
    return rotary_cos_sin(RotaryConfig(head_dim=64, rotary_dim=64, theta=10000.0, max_position=256, scaling=scaling))


@pytest.mark.parametrize(("parameters", "scaling"), SCALINGS)
def test_the_table_is_transformers_bit_for_bit(
    parameters: dict[str, float], scaling: LinearScaling | Llama3Scaling | YarnScaling | None
) -> None:
    positions = torch.arange(256)

    cos_sin = table(scaling)

    cos, sin = transformers_cos_sin(parameters, torch.empty(0), positions)
    assert torch.equal(cos_sin, torch.cat((cos[0, :, :32], sin[0, :, :32]), dim=-1))


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_and_keys_turn_as_in_transformers(name: OpsName, dtype: torch.dtype) -> None:
    qkv = torch.randn(7, 8, 64).to(dtype)
    q, k, positions = qkv[:, :5], qkv[:, 5:7], torch.tensor([0, 1, 255, 17, 17, 100, 3])
    cos, sin = transformers_cos_sin({"rope_type": "default"}, q, positions)
    expected = apply_rotary_pos_emb(q[None], k[None], cos, sin, unsqueeze_dim=2)

    turned = load_ops(name).apply_rotary(q, k, positions, table(None))

    for found, wanted in zip(turned, expected, strict=True):
        torch.testing.assert_close(found, wanted[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim", "rotary_dim"), [(1, 1, 1, 32, 32), (5, 7, 1, 80, 20), (3, 6, 2, 96, 96)]
)
def test_each_path_turns_separate_tensors_and_partial_heads_as_the_reference_does(
    name: OpsName, dtype: torch.dtype, tokens: int, heads: int, kv_heads: int, dim: int, rotary_dim: int
) -> None:
    q, k = torch.randn(tokens, heads, dim).to(dtype), torch.randn(tokens, kv_heads, dim).to(dtype)
    positions = torch.randint(0, 40, (tokens,))
    cos_sin = rotary_cos_sin(RotaryConfig(head_dim=dim, rotary_dim=rotary_dim, theta=500.0, max_position=40), dtype)
    expected = load_ops("reference").apply_rotary(q, k, positions, cos_sin)

    turned = load_ops(name).apply_rotary(q, k, positions, cos_sin)

    for found, wanted in zip(turned, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rotary_dim", [0, 7, 66])
def test_a_rotary_dim_that_cannot_be_is_refused_by_name(rotary_dim: int) -> None:
    config = RotaryConfig(head_dim=64, rotary_dim=rotary_dim, theta=1e4, max_position=8)

    with pytest.raises(ValueError, match=f"rotary_dim={rotary_dim}"):
        rotary_cos_sin(config)
