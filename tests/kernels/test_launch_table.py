"""The committed launch table: its lookups, its file, and that every entry compiles for an H100 on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quire_kernels import launch_configs
from quire_kernels.launch_configs import (
    ANY_DEVICE,
    attention_config,
    attention_configs,
    device_kind_of,
    launch_params,
    read_table,
    row_config,
    trying,
    write_table,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA", ANY_DEVICE),
    ],
)
def test_a_devices_kind_is_the_word_that_names_its_chip(name: str, kind: str) -> None:
    assert device_kind_of(name) == kind


def test_head_dims_are_looked_up_by_the_next_power_of_two() -> None:
    assert attention_config("decode", 80, 2) == attention_config("decode", 128, 2)
    assert attention_config("prefill", 16, 4) == attention_config("prefill", 32, 4)


def test_a_head_dim_beyond_the_table_is_refused_with_what_to_add() -> None:
    with pytest.raises(ValueError, match=r"decode of class d512_e2: add an entry to launch_configs\.json"):
        attention_config("decode", 512, 2)


def test_a_kind_without_an_entry_of_its_own_gets_the_one_for_any_device() -> None:
    params = {"block": 64, "num_warps": 1}
    with trying("silu_mul", "all", params):
        assert launch_params("silu_mul", "all", "h100") == params
        assert row_config("silu_mul").block == 64

    assert launch_params("silu_mul", "all", "no such kind") == launch_params("silu_mul", "all", ANY_DEVICE)
    assert row_config("silu_mul").block != 64


def test_every_block_and_number_of_warps_is_a_power_of_two_that_triton_takes() -> None:
    for classes in read_table().values():
        for by_device in classes.values():
            for params in by_device.values():
                powers = [value for name, value in params.items() if name.startswith(("block", "num_warps"))]
                assert all(value & (value - 1) == 0 for value in powers), params
                assert 1 <= params["num_warps"] <= 32
                assert 1 <= params.get("num_stages", 1) <= 8


def test_attention_has_entries_for_every_head_dim_in_both_element_sizes() -> None:
    wanted = {(op, dim, size) for op in ("prefill", "decode") for dim in (32, 64, 128, 256) for size in (2, 4)}

    assert wanted <= set(attention_configs())


def test_the_committed_file_is_what_writing_its_table_gives(tmp_path: Path) -> None:
    written = tmp_path / "table.json"

    write_table(read_table(), written)

    assert written.read_text() == launch_configs.TABLE_PATH.read_text()
    assert read_table(written) == read_table()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"h100": {"block": 64}}, "silu_mul all lacks an entry for device `any`"),
        ({"any": {"block": 0}}, "silu_mul all any: block must be a positive integer"),
        ({"any": {"block": "64"}}, "silu_mul all any: block must be a positive integer"),
    ],
)
def test_a_malformed_table_is_refused_by_entry(tmp_path: Path, entry: dict[str, object], message: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"silu_mul": {"all": entry}}))

    with pytest.raises(ValueError, match=message):
        read_table(path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_entry_compiles_for_sm_90_within_shared_memory_and_hot_ones_spill_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / "bench")}

    done = subprocess.run(
        [sys.executable, "-m", "gpu.compile_table"], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    compiled = {kernel["name"] for answer in answers for kernel in answer["kernels"]}
    assert {"prefill_kernel", "decode_kernel", "silu_mul_kernel", "pivot_kernel", "penalties_kernel"} <= compiled
    assert all(kernel["shared_bytes"] <= 227 * 1024 for answer in answers for kernel in answer["kernels"])
