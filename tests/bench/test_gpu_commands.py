"""The GPU commands, rehearsed on a CPU: they run to their end, find what is wrong, and leave their files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu.check import missing_verdicts, run_shard
from gpu.models import TINY_MODELS, tiny_config, write_tiny_checkpoint
from gpu.suite import Shard, all_cases, ops_without_cases, shards
from gpu.tunables import entry_workload, tunables
from gpu.tune import refusal

from quire_kernels.launch_configs import launch_params, read_table
from quire_worker.models.config import SUPPORTED_ARCHITECTURES, parse_model_config
from quire_worker.models.safetensors_reader import open_checkpoint

ROOT = Path(__file__).parents[2]


def run(*arguments: str, timeout_s: float = 850) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "bench")
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)


BARE_MACHINE = """
import importlib.abc, sys
lacking = "llguidance opentelemetry aiohttp tokenizers jinja2 prometheus_client uvloop zmq".split()
class Lacking(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in lacking:
            raise ImportError(f"{name} is not on a machine with a GPU and nothing else")
sys.meta_path.insert(0, Lacking())
import gpu.bench, gpu.check, gpu.check_shard, gpu.parity, gpu.tune
"""


def test_the_gpu_commands_need_torch_triton_numpy_and_msgspec_only() -> None:
    done = run("gpu.check", "--help")
    bare = subprocess.run(
        [sys.executable, "-c", BARE_MACHINE],
        env={**os.environ, "PYTHONPATH": str(ROOT / "bench")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, bare.returncode) == (0, 0), bare.stderr


def test_every_operation_has_cases_and_their_names_are_unique() -> None:
    assert ops_without_cases() == []
    names = [(case.op, case.name) for case in all_cases(small=False)]
    assert len(names) == len(set(names))


def test_every_architecture_has_a_tiny_model() -> None:
    architectures = {parse_model_config(tiny_config(name)).architecture for name in TINY_MODELS}

    assert architectures == set(SUPPORTED_ARCHITECTURES)


def test_a_tiny_checkpoint_is_a_safetensors_file_that_the_engine_reads(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "model", "llama"))

    tensors = dict(checkpoint.stream({"model.norm.weight", "lm_head.weight"}))

    assert tensors["lm_head.weight"].shape == (320, 64)
    assert tensors["model.norm.weight"].mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_a_rehearsed_check_passes_and_writes_its_verdicts(tmp_path: Path) -> None:
    out = tmp_path / "check.json"

    done = run("gpu.check", "--device", "cpu", "--ops", "cpu", "--small", "--jobs", "2", "--out", str(out))

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    report = json.loads(out.read_text())
    assert report["complete"]
    assert len(report["verdicts"]) == sum(len(shard.checks) for shard in shards(small=True, engine=True))
    assert all(verdict["passes"] for verdict in report["verdicts"])


def test_kernels_are_checked_through_the_interpreter_where_no_gpu_is(tmp_path: Path) -> None:
    out = tmp_path / "check.json"

    done = run("gpu.check", "--device", "cpu", "--interpret", "--only", "silu_mul", "--jobs", "1", "--out", str(out))

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert {verdict["op"] for verdict in json.loads(out.read_text())["verdicts"]} == {"silu_mul"}


def test_a_shard_that_dies_fails_what_it_had_not_checked() -> None:
    verdict = {"op": "a", "name": "1", "passes": True, "error": 0.0, "units": 0.0, "seconds": 0.0, "message": ""}
    code = f"print({json.dumps(verdict)!r}, flush=True); raise RuntimeError('illegal memory access')"
    shard = Shard(name="a", checks=(("a", "1"), ("a", "2"), ("a", "3")))

    verdicts = run_shard(shard, [sys.executable, "-c", code], limit_s=60)

    assert [v.passes for v in verdicts] == [True, False, False]
    assert "illegal memory access" in verdicts[1].message
    assert verdicts[2].message == "as above"


def test_a_shard_that_hangs_is_ended_and_fails() -> None:
    shard = Shard(name="a", checks=(("a", "1"),))
    start = time.monotonic()

    (verdict,) = run_shard(shard, [sys.executable, "-c", "import signal; signal.pause()"], limit_s=2)

    assert not verdict.passes
    assert verdict.message == "timed out after 2 s"
    assert time.monotonic() - start < 30


def test_a_shard_for_which_no_time_is_left_fails() -> None:
    shard = Shard(name="a", checks=(("a", "1"),))

    (verdict,) = run_shard(shard, [sys.executable, "-c", ""], limit_s=-1.0)

    assert verdict.message == "not run: the command's time was over"
    assert missing_verdicts(shard, [verdict], "", 0.0) == []


@pytest.mark.slow
def test_a_rehearsed_benchmark_measures_every_part(tmp_path: Path) -> None:
    done = run("gpu.bench", "--dry-run", "--out", str(tmp_path))

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "gpu-bench.json").read_text())
    assert results["complete"]
    assert [row["batch"] for row in results["decode"]] == [1, 2]
    assert [row["caching"] for row in results["saturation"]] == [False, True]
    assert results["profiles"][0]["kernels_per_step"] > 0
    assert [row for row in results["kernels"] if "note" in row] == []
    report = (tmp_path / "gpu-bench.md").read_text()
    headings = {line for line in report.splitlines() if line.startswith("## ")}
    assert headings == {
        "## Goals", "## Decode steps", "## Prompts", "## Saturation", "## Where a decode step goes", "## Single operations",
    }  # fmt: skip


def test_a_benchmark_without_a_gpu_says_how_to_rehearse() -> None:
    done = run("gpu.bench", "--parts", "speed")

    assert done.returncode == 1
    assert "--parts speed is unknown" in done.stderr


def test_every_tuned_class_is_in_the_table_and_candidates_have_its_parameters() -> None:
    for tunable in tunables():
        entry = launch_params(tunable.kernel, tunable.shape_class)
        assert all(set(candidate) == set(entry) for candidate in tunable.candidates), tunable.name


def test_every_entry_of_the_table_has_a_call_that_compiles_it() -> None:
    unknown = {
        kernel for kernel, classes in read_table().items() for name in classes if entry_workload(kernel, name) is None
    }

    assert unknown <= {"scatter"}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": "CompilationError: no"}, "CompilationError: no"),
        (
            {"kernels": [{"name": "k", "shared_bytes": 240_000, "stack_bytes": 0}]},
            "needs 240000 bytes of shared memory",
        ),
        ({"kernels": [{"name": "k", "shared_bytes": 1000, "stack_bytes": 320}]}, "k spills"),
        ({"kernels": [{"name": "k", "shared_bytes": 1000, "stack_bytes": 8}]}, None),
    ],
)
def test_a_candidate_that_cannot_be_good_is_not_timed(answer: dict[str, object], why: str | None) -> None:
    assert refusal(answer) == why
