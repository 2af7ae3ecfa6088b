"""quantization_config: the FP8 formats that are read, and what a person is told about all others."""

import copy

import pytest

from quire_worker.errors import LoadError
from quire_worker.models.fields import Fields
from quire_worker.models.quantization_config import Fp8Format, parse_quantization_config

BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "global_compression_ratio": 1.4,
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "sparsity_config": {},
    "version": "0.11.0",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "output_activations": None,
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "token",
                "symmetric": True,
                "dynamic": True,
            },
        }
    },
}


def parse(raw):
    return parse_quantization_config(Fields({"quantization_config": raw}, "config.json"))


def compressed(weights=None, activations=None, **changes):
    """COMPRESSED with some fields changed."""
    raw = copy.deepcopy(COMPRESSED)
    group = raw["config_groups"]["group_0"]
    group["weights"] |= weights or {}
    group["input_activations"] |= activations or {}
    return raw | changes


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, None),
        (BLOCKS, Fp8Format(scale_name="weight_scale_inv", is_blocks=True)),
        (BLOCKS | {"modules_to_not_convert": ["lm_head"]}, Fp8Format(scale_name="weight_scale_inv", is_blocks=True)),
        (BLOCKS | {"weight_block_size": None}, Fp8Format(scale_name="weight_scale", is_blocks=False)),
        (compressed(), Fp8Format(scale_name="weight_scale", is_blocks=False)),
        (compressed({"strategy": "tensor"}), Fp8Format(scale_name="weight_scale", is_blocks=False)),
        (
            compressed({"strategy": "block", "block_structure": [128, 128]}, {"strategy": "group", "group_size": 128}),
            Fp8Format(scale_name="weight_scale", is_blocks=True),
        ),
        (
            compressed(kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}),
            Fp8Format(scale_name="weight_scale", is_blocks=False),
        ),
    ],
)
def test_fp8_checkpoints_are_read(raw, expected):
    assert parse(raw) == expected


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ("fp8", "quantization_config 'fp8'"),
        ({"quant_method": "awq", "bits": 4}, "quantization_config: quant_method 'awq'"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq'"),
        ({"bits": 4}, "quant_method None"),
        (BLOCKS | {"activation_scheme": "static"}, "activation_scheme 'static'"),
        (BLOCKS | {"fmt": "e5m2"}, "fmt 'e5m2'"),
        (BLOCKS | {"weight_block_size": [64, 64]}, "weight_block_size [64, 64]"),
        (BLOCKS | {"scale_fmt": "ue8m0"}, "scale_fmt 'ue8m0'"),
        (compressed(format="pack-quantized"), "format 'pack-quantized'"),
        (compressed(config_groups={}), "config_groups {}"),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        (compressed({"num_bits": 4}), "config_groups: group_0: weights: num_bits 4"),
        (compressed({"type": "int"}), "weights: type 'int'"),
        (compressed({"strategy": "group"}), "weights: strategy 'group'"),
        (compressed({"strategy": "block", "block_structure": [64, 64]}), "weights: block_structure [64, 64]"),
        (compressed({}, {"dynamic": False}), "input_activations: dynamic False"),
        (compressed({}, {"strategy": "tensor"}), "input_activations: strategy 'tensor'"),
        (compressed(kv_cache_scheme={"num_bits": 4}), "kv_cache_scheme: num_bits 4"),
    ],
)
def test_what_is_not_read_is_named_with_what_is(raw, field):
    with pytest.raises(LoadError) as caught:
        parse(raw)

    assert str(caught.value).startswith("config.json: ")
    assert field in str(caught.value)
    assert "supported: FP8 (E4M3) weights by tensor, by output or by blocks of 128 x 128" in str(caught.value)


def test_weights_without_activations_are_refused_by_name():
    raw = compressed()
    raw["config_groups"]["group_0"]["input_activations"] = None

    with pytest.raises(LoadError, match="input_activations None is not supported"):
        parse(raw)
