"""Building a runner: what it is told about itself, and what a person is told when it cannot be built."""

import json
import shutil

import pytest
import torch

from quire_kernels.ops import load_ops
from quire_worker.errors import LoadError
from quire_worker.execution.build import build_runner
from quire_worker.execution.device import (
    resolve_device,
    resolve_dtype,
    resolve_kv_dtype,
    resolve_ops,
    resolve_quantization,
    resolve_threads,
)
from quire_worker.execution.kv_memory import (
    CPU_MAX_BLOCKS,
    KVShape,
    decide_num_blocks,
    fit_max_model_len,
    host_free_bytes,
)
from quire_worker.execution.options import RunnerOptions

CPU = torch.device("cpu")
SHAPE = KVShape(layers_per_block=2, num_groups=1, num_kv_heads=2, block_size=16, head_dim=8, dtype=torch.float32)
BLOCK_BYTES = 2 * 2 * 2 * 16 * 8 * 4


def options(folder, **changes):
    return RunnerOptions(
        **{
            "model_dir": folder,
            "device": "cpu",
            "compute_threads": 1,
            "max_num_seqs": 8,
            "num_gpu_blocks_override": 20,
            **changes,
        }
    )


def test_the_runner_says_what_it_is(model_dir):
    runner, info = build_runner(options(model_dir))

    assert (info.vocab_size, info.num_blocks, info.block_size, info.max_model_len) == (96, 20, 16, 256)
    assert (info.device, info.dtype) == ("cpu", "float32")
    assert info.num_parameters == 2 * 96 * 32 + 2 * (32 * (32 + 32 + 32) + 3 * 32 * 48 + 64) + 32
    assert info.weights_size_bytes == 4 * info.num_parameters
    assert info.kv_size_bytes == 20 * BLOCK_BYTES
    assert set(info.phases_s) == {"config", "weights", "profile", "kv_cache", "warm_up"}
    runner.close()


@pytest.mark.parametrize("quantization", ["int8", "int8-weight-only"])
def test_int8_takes_a_byte_for_each_parameter_of_a_projection(model_dir, quantization):
    runner, info = build_runner(options(model_dir, quantization=quantization))

    in_layers = 2 * (32 * (32 + 32 + 32) + 3 * 32 * 48)
    assert info.weights_size_bytes == in_layers + 4 * (info.num_parameters - in_layers)
    runner.close()


def test_the_length_fits_itself_to_the_pool_and_says_so(model_dir, caplog):
    info = build_runner(options(model_dir, num_gpu_blocks_override=5))[1]

    assert info.max_model_len == 64
    assert "max_model_len=64 reduced from the model's 256" in caplog.text


def test_an_explicit_length_that_cannot_fit_is_an_error_with_both_numbers_and_the_flags(model_dir):
    with pytest.raises(LoadError) as caught:
        build_runner(options(model_dir, num_gpu_blocks_override=5, max_model_len=100))

    assert all(word in str(caught.value) for word in ("--max-model-len 100", "64", "--num-gpu-blocks-override"))


def test_a_length_beyond_the_models_is_an_error(model_dir):
    with pytest.raises(LoadError, match=r"--max-model-len 300 exceeds .* \(256\)"):
        build_runner(options(model_dir, max_model_len=300))


def test_a_folder_whose_config_and_weights_disagree_is_an_error(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))

    with pytest.raises(LoadError, match=r"lacks 9 tensors: model\.layers\.2\."):
        build_runner(options(folder))


def test_a_tied_checkpoint_needs_no_head_and_ignores_one(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "tied")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))

    info = build_runner(options(folder))[1]

    assert info.num_parameters == 96 * 32 + 2 * (32 * (32 + 32 + 32) + 3 * 32 * 48 + 64) + 32


def test_blocks_come_from_the_most_explicit_setting(model_dir):
    def blocks(free_bytes, *, is_gpu=False, **changes):
        return decide_num_blocks(
            SHAPE, options(model_dir, **{"num_gpu_blocks_override": None, **changes}), free_bytes, is_gpu=is_gpu
        )

    assert blocks(0, num_gpu_blocks_override=7, kv_cache_memory_bytes=100 * BLOCK_BYTES) == 7
    assert blocks(0, kv_cache_memory_bytes=100 * BLOCK_BYTES + 1) == 100
    assert blocks(40 * BLOCK_BYTES, is_gpu=True) == 40
    assert blocks(40 * BLOCK_BYTES) == 10
    assert blocks(2**40) == CPU_MAX_BLOCKS


def test_no_room_for_blocks_is_an_error_that_names_the_flag(model_dir):
    with pytest.raises(LoadError, match="--kv-cache-memory-bytes 100 leaves 100 bytes"):
        decide_num_blocks(
            SHAPE, options(model_dir, num_gpu_blocks_override=None, kv_cache_memory_bytes=100), 0, is_gpu=False
        )
    with pytest.raises(LoadError, match="--gpu-memory-utilization"):
        decide_num_blocks(SHAPE, options(model_dir, num_gpu_blocks_override=None), -5, is_gpu=True)


def test_each_group_needs_blocks_of_its_own(model_dir):
    shape = KVShape(layers_per_block=2, num_groups=3, num_kv_heads=2, block_size=16, head_dim=8, dtype=torch.float32)

    assert fit_max_model_len(options(model_dir), 1000, 31, shape) == 160


def test_the_cache_starts_as_zeros_in_blocks_that_are_contiguous_runs():
    cache = SHAPE.allocate(5, torch.device("cpu"))

    assert cache.shape == (5, 2, 2, 2, 16, 8)
    assert cache.is_contiguous()
    assert cache[0].numel() * 4 == SHAPE.block_bytes == BLOCK_BYTES
    assert not cache.any()


def make_root(tmp_path, files):
    for name, text in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8000 * 1024),
        ({"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}, 8000 * 1024),
        ({"sys/fs/cgroup/memory.max": "5000\n", "sys/fs/cgroup/memory.current": "2000\n"}, 3000),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "9000\n",
            },
            0,
        ),
    ],
)
def test_free_memory_is_the_cgroups_if_that_is_less(tmp_path, files, free):
    assert host_free_bytes(make_root(tmp_path, files)) == free


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_threads_follow_the_cgroups_quota(tmp_path, files, most):
    root = make_root(tmp_path, files)
    unlimited = resolve_threads(None, make_root(tmp_path / "bare", {}))

    assert resolve_threads(None, root) == (most or unlimited)
    assert resolve_threads(3, root) == 3


def test_auto_means_what_the_device_does_well():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    assert resolve_dtype("auto", torch.float16, cpu) == torch.bfloat16
    assert resolve_dtype("auto", torch.float16, cuda) == torch.float16
    assert resolve_dtype("auto", torch.float32, cpu) == torch.float32
    assert resolve_dtype("half", torch.float32, cuda) == torch.float16
    assert (resolve_ops("auto", cpu), resolve_ops("auto", cuda)) == ("cpu", "triton")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: resolve_device("tpu"), "--device tpu is unknown"),
        (lambda: resolve_dtype("int4", torch.float32, torch.device("cpu")), "--dtype int4 is unknown"),
        (lambda: resolve_ops("fast", torch.device("cpu")), "--ops fast is unknown"),
        (lambda: resolve_ops("cpu", torch.device("cuda")), "--ops cpu does not run on a GPU"),
        (
            lambda: resolve_quantization("fp4", CPU, torch.float32, "cpu", has_library=True),
            "--quantization fp4 is unknown: use none, int8, int8-weight-only or fp8",
        ),
        (
            lambda: resolve_quantization("int8", torch.device("cuda"), torch.float32, "triton", has_library=False),
            "use fp8 on a GPU",
        ),
        (lambda: resolve_quantization("int8", CPU, torch.float16, "cpu", has_library=True), "use --dtype bfloat16"),
        (
            lambda: resolve_quantization(
                "int8-weight-only", torch.device("cuda"), torch.float32, "triton", has_library=False
            ),
            "--quantization int8-weight-only runs on a CPU only: use fp8 on a GPU",
        ),
        (
            lambda: resolve_quantization("int8-weight-only", CPU, torch.float16, "cpu", has_library=True),
            "--quantization int8-weight-only computes in float32 or bfloat16: use --dtype bfloat16",
        ),
        (lambda: resolve_quantization("int8", CPU, torch.float32, "cpu", has_library=False), r"install g\+\+"),
        (
            lambda: resolve_quantization("int8-weight-only", CPU, torch.float32, "cpu-torch", has_library=False),
            "int8-weight-only needs the C\\+\\+ ops, which --ops cpu-torch leaves out: use --ops cpu",
        ),
        (
            lambda: resolve_quantization("int8", CPU, torch.float32, "cpu", has_library=True, is_stored_fp8=True),
            "are FP8 already: leave it out",
        ),
        (
            lambda: resolve_quantization("fp8", CPU, torch.bfloat16, "cpu", has_library=True),
            "use --quantization int8 on a CPU",
        ),
        (
            lambda: resolve_quantization("fp8", torch.device("cuda"), torch.float16, "triton", has_library=False),
            "use --dtype bfloat16",
        ),
        (
            lambda: resolve_kv_dtype("fp8", CPU, torch.bfloat16, "cpu"),
            "--kv-cache-dtype fp8 runs on a GPU only: leave it out",
        ),
        (lambda: resolve_kv_dtype("int4", CPU, torch.bfloat16, "cpu"), "--kv-cache-dtype int4 is unknown"),
    ],
)
def test_a_choice_that_is_unknown_or_cannot_be_is_refused(call, words):
    with pytest.raises(LoadError, match=words):
        call()


def test_a_cuda_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(LoadError, match="--device cuda: torch finds no usable GPU"):
        resolve_device("cuda")


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_every_set_of_ops_for_a_cpu_loads(name):
    assert load_ops(name).name == name
