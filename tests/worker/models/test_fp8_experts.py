"""A mixture whose experts are FP8: stored so, quantised while loading, and where they cannot be."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_kernels.ops import load_ops
from quire_worker.execution.build import build_runner
from quire_worker.execution.options import RunnerOptions
from quire_worker.models.config import parse_model_config
from quire_worker.models.decoder import Decoder
from quire_worker.models.kv_groups import decide_kv_layout
from quire_worker.models.weight_slots import WeightSlots
from tests.worker.models.fp8_checkpoints import EXPERTS, HIDDEN, LAYERS, WIDTH, make_moe_checkpoints
from tests.worker.models.test_fp8_decoder import error, load, logits_of

REFERENCE = load_ops("reference")
EXPERT_NUMBERS = LAYERS * EXPERTS * 3 * WIDTH * HIDDEN


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return make_moe_checkpoints(tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="module")
def exact(checkpoints):
    return logits_of(load(checkpoints[1])[0])


def test_experts_of_an_fp8_checkpoint_are_computed_as_they_are(checkpoints, exact):
    decoder, _ = load(checkpoints[0], fp8_ops=REFERENCE)

    assert 0.005 < error(logits_of(decoder), exact) < 0.06
    assert decoder._linears.dequantised == []
    stacks = decoder._layers[0]._mlp._experts
    assert stacks._gate_up.values.dtype == torch.float8_e4m3fn
    assert stacks._gate_up.scales.shape == (EXPERTS * 2 * WIDTH // 128, HIDDEN // 128)


def test_experts_of_floats_are_quantised_by_output_while_loading(checkpoints, exact):
    plain, _ = load(checkpoints[1])
    decoder, _ = load(checkpoints[1], fp8_ops=REFERENCE, quantization="fp8")

    assert 0.005 < error(logits_of(decoder), exact) < 0.08
    stacks = decoder._layers[1]._mlp._experts
    assert stacks._down.scales.shape == (EXPERTS * HIDDEN,)
    in_attention = LAYERS * HIDDEN * (2 * HIDDEN + 2 * 128)
    saved = plain.weights_size_bytes - decoder.weights_size_bytes
    assert saved == 3 * (EXPERT_NUMBERS + in_attention)


def test_where_fp8_is_not_computed_the_experts_are_what_the_checkpoint_means(checkpoints, exact):
    decoder, _ = load(checkpoints[0])

    assert torch.equal(logits_of(decoder), exact)
    assert len(decoder._linears.dequantised) == LAYERS * (4 + 3 * EXPERTS)


def test_experts_whose_shapes_no_kernel_takes_stay_floats_and_the_log_says_so(tmp_path, caplog):
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 3,
        "num_experts_per_tok": 1, "moe_intermediate_size": 24, "max_position_embeddings": 64, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_random(tmp_path, config)
    options = RunnerOptions(
        model_dir=tmp_path, device="cpu", ops="reference", quantization="fp8", num_gpu_blocks_override=8, max_num_seqs=2,
        compute_threads=1,
    )  # fmt: skip

    build_runner(options)

    told = "quantization=fp8 leaves layers=9 of experts in torch.bfloat16, first=model.layers.0.mlp.experts.0.gate_proj"
    assert told in caplog.text


def write_random(folder, config):
    """Every tensor that the model wants."""
    parsed, slots = parse_model_config(config), WeightSlots()
    Decoder(
        parsed, ops=REFERENCE, slots=slots, places=decide_kv_layout(parsed.windows).places, device=torch.device("cpu"),
        dtype=torch.float32, num_positions=1,
    )  # fmt: skip
    save_file({name: torch.randn(shape) * 0.1 for name, shape in slots.shapes.items()}, folder / "model.safetensors")


def test_experts_that_only_the_checkpoint_quantises_in_part_are_dequantised(checkpoints, exact, tmp_path):
    folder = shutil.copytree(checkpoints[0], tmp_path / "mixed")
    tensors = load_file(folder / "model.safetensors")
    plain = load_file(checkpoints[1] / "model.safetensors")
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    del tensors[f"{name}_scale_inv"]
    tensors[name] = plain[name]
    save_file(tensors, folder / "model.safetensors")

    decoder, _ = load(folder, fp8_ops=REFERENCE)

    assert 0.005 < error(logits_of(decoder), exact) < 0.06
    assert len(decoder._linears.dequantised) == 3 * EXPERTS - 1
