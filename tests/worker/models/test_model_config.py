"""config.json in all its spellings, and refusals that name the field."""

import json

import pytest

from quire_kernels.rotary import LinearScaling, Llama3Scaling, YarnScaling
from quire_worker.errors import LoadError
from quire_worker.models.config import SUPPORTED_ARCHITECTURES, load_model_config, parse_model_config


def raw(architecture="LlamaForCausalLM", **changes):
    fields = {
        "architectures": [architecture],
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }
    merged = {**fields, **changes}
    return {name: value for name, value in merged.items() if value is not ...}


def test_the_old_and_the_new_spelling_of_rotary_and_dtype_mean_the_same():
    old = raw(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2}, torch_dtype="bfloat16")
    new = raw(rope_parameters={"rope_type": "linear", "factor": 2, "rope_theta": 5e5}, dtype="bfloat16")

    assert parse_model_config(old) == parse_model_config(new)
    assert parse_model_config(old).rope.theta == 5e5
    assert parse_model_config(old).rope.scaling == LinearScaling(factor=2.0)
    assert parse_model_config(old).dtype == "bfloat16"


def test_absent_fields_take_transformers_defaults():
    config = parse_model_config(raw(num_key_value_heads=..., rms_norm_eps=...))

    assert config.num_kv_heads == 8
    assert config.head_dim == 8
    assert config.rms_norm_eps == 1e-6
    assert config.rope.theta == 10_000.0
    assert config.rope.scaling is None
    assert config.windows == (None,) * 4
    assert not config.ties_embeddings
    assert config.dtype is None


def test_a_null_head_dim_counts_as_absent():
    assert parse_model_config(raw(head_dim=None)).head_dim == 8
    assert parse_model_config(raw(head_dim=32)).head_dim == 32


def test_each_architecture_has_its_own_biases_norms_and_base():
    parsed = {name: parse_model_config(raw(name, head_dim=16)) for name in SUPPORTED_ARCHITECTURES}

    assert {name for name, config in parsed.items() if config.has_qkv_bias} == {"Qwen2ForCausalLM"}
    assert {name for name, config in parsed.items() if config.has_qk_norm} == {
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
    }
    assert {name for name, config in parsed.items() if config.moe} == {"Qwen3MoeForCausalLM", "MixtralForCausalLM"}
    assert parsed["MixtralForCausalLM"].rope.theta == 1e6
    assert parse_model_config(raw("Qwen3ForCausalLM")).head_dim == 128


def test_attention_bias_reaches_the_output_projection_too():
    config = parse_model_config(raw(attention_bias=True, mlp_bias=True))

    assert (config.has_qkv_bias, config.has_output_bias, config.has_mlp_bias) == (True, True, True)


@pytest.mark.parametrize(
    ("architecture", "changes", "windows"),
    [
        ("MistralForCausalLM", {"sliding_window": 32}, (32,) * 4),
        ("MistralForCausalLM", {"sliding_window": None}, (None,) * 4),
        ("MistralForCausalLM", {}, (4096,) * 4),
        ("LlamaForCausalLM", {"sliding_window": 32}, (None,) * 4),
        ("Qwen2ForCausalLM", {"sliding_window": 32}, (None,) * 4),
        (
            "Qwen2ForCausalLM",
            {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 3},
            (None, None, None, 32),
        ),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 32}, (None,) * 4),
        (
            "Qwen3ForCausalLM",
            {
                "use_sliding_window": True,
                "sliding_window": 32,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 32, None, 32),
        ),
        ("Qwen3MoeForCausalLM", {"use_sliding_window": True, "sliding_window": 32, "head_dim": 8}, (32,) * 4),
        ("MixtralForCausalLM", {}, (None,) * 4),
        ("MixtralForCausalLM", {"sliding_window": 32}, (32,) * 4),
    ],
)
def test_windows_follow_the_rules_of_each_architecture(architecture, changes, windows):
    assert parse_model_config(raw(architecture, **changes)).windows == windows


def test_rotary_scalings_are_read_whole():
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    yarn = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512, "beta_fast": 16}

    assert parse_model_config(raw(rope_scaling=llama3)).rope.scaling == Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=512
    )
    assert parse_model_config(raw(rope_scaling=yarn)).rope.scaling == YarnScaling(
        factor=4.0, original_max_position=512, beta_fast=16.0
    )


def test_experts_are_read_in_both_spellings():
    moe = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True, "mlp_only_layers": [1]}

    old = parse_model_config(raw("Qwen3MoeForCausalLM", num_experts=4, decoder_sparse_step=2, head_dim=8, **moe)).moe
    new = parse_model_config(
        raw("Qwen3MoeForCausalLM", num_local_experts=4, decoder_sparse_step=2, head_dim=8, **moe)
    ).moe

    assert old == new
    assert old is not None
    assert old.layers == {3}
    assert (old.num_experts, old.num_experts_per_token, old.intermediate_size) == (4, 2, 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["architectures", "GPT2LMHeadModel", "LlamaForCausalLM"]),
        ({"architectures": []}, ["architectures", "supported"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config: quant_method", "FP8 (E4M3)", "float checkpoint"]),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, ["rope_type", "longrope", "yarn"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["rope_scaling", "factor", "missing"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5", "1.0"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["rope_parameters", "layer type"]),
        ({"vocab_size": ...}, ["vocab_size", "missing"]),
        ({"vocab_size": "many"}, ["vocab_size", "many", "integer"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "at least 1"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3", "divide"]),
        ({"hidden_size": 60}, ["hidden_size", "60", "num_attention_heads"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true or false"]),
        ({"torch_dtype": "int8"}, ["torch_dtype", "int8", "bfloat16"]),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["linear_attention"] * 4},
            ["layer_types", "sliding_attention"],
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, words):
    with pytest.raises(LoadError) as caught:
        parse_model_config(raw(**changes), source="/models/x/config.json")

    assert all(word in str(caught.value) for word in ["/models/x/config.json", *words])


def test_a_folder_without_config_or_with_a_broken_one_is_named(tmp_path):
    with pytest.raises(LoadError, match="no such folder"):
        load_model_config(tmp_path / "nowhere")
    with pytest.raises(LoadError, match=r"config\.json is missing"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match=r"config\.json is not a JSON object"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(LoadError, match=r"config\.json is not a JSON object"):
        load_model_config(tmp_path)
