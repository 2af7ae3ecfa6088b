"""FP8 through the whole runner: a checkpoint in it, a cache in it, and where neither can be had."""

import pytest

from quire_worker.errors import LoadError
from quire_worker.execution.build import build_runner
from quire_worker.execution.options import RunnerOptions
from tests.worker.models.fp8_checkpoints import make_checkpoints

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return make_checkpoints(tmp_path_factory.mktemp("fp8"))


def build(folder, **changes):
    settings = {
        "device": "cpu",
        "compute_threads": 1,
        "max_num_seqs": 2,
        "num_gpu_blocks_override": 8,
        "block_size": 16,
    }
    return build_runner(RunnerOptions(model_dir=folder, **{**settings, **changes}))


def tokens_of(runner, plans):
    """Of PROMPT, greedily."""
    first = plans.run(runner, plans.step([0], [len(PROMPT)], new=[plans.new(0, PROMPT, [1, 2, 3])]))
    return [first[0], *plans.continue_rows(runner, [0], 6)[0]]


def test_on_a_cpu_an_fp8_checkpoint_is_served_in_floats_and_the_log_says_so(checkpoints, plans, caplog):
    fp8, info = build(checkpoints[0], dtype="float32")
    plain, plain_info = build(checkpoints[1], dtype="float32")

    assert tokens_of(fp8, plans) == tokens_of(plain, plans)
    assert info.weights_size_bytes == plain_info.weights_size_bytes
    assert (
        "fp8 layers=14 of the checkpoint are dequantised to torch.float32, first=model.layers.0.self_attn.q_proj"
        in caplog.text
    )


def test_the_reference_computes_an_fp8_checkpoint_as_a_gpu_does(checkpoints, plans, caplog):
    runner, info = build(checkpoints[0], ops="reference")

    assert len(tokens_of(runner, plans)) == 7
    in_layers = 2 * 256 * (256 + 2 * 128 + 256 + 3 * 256)
    assert info.dtype == "bfloat16"
    assert info.weights_size_bytes == in_layers + 2 * (info.num_parameters - in_layers)
    assert "are dequantised" not in caplog.text


def test_an_fp8_cache_is_half_of_one_in_bfloat16_and_serves(checkpoints, plans):
    runner, info = build(checkpoints[1], ops="reference", kv_cache_dtype="fp8")
    plain, plain_info = build(checkpoints[1], ops="reference")

    assert info.kv_size_bytes * 2 == plain_info.kv_size_bytes == 8 * 2 * 2 * 2 * 16 * 64 * 2
    assert tokens_of(runner, plans)[0] == tokens_of(plain, plans)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8 runs on a GPU only: leave it out"),
        (
            {"quantization": "fp8"},
            "--quantization fp8 runs on a GPU only: leave it out, and the checkpoint's FP8 weights",
        ),
        ({"quantization": "int8"}, "--quantization int8: the checkpoint's weights are FP8 already: leave it out"),
        (
            {"quantization": "int8-weight-only"},
            "--quantization int8-weight-only: the checkpoint's weights are FP8 already",
        ),
    ],
)
def test_what_this_machine_or_checkpoint_cannot_have_is_refused_with_the_fix(checkpoints, changes, message):
    with pytest.raises(LoadError, match=message):
        build(checkpoints[0], **changes)
