"""Kernels are not compiled anew while serving: what steps vary in is nothing that Triton specialises for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("count_variants.py")
VARIANTS = {
    # Rows of one query, and of a few.
    "decode_kernel": 2,
    "reduce_kernel": 2,
    # In floats and in FP8.
    "invariant_matmul_kernel": 2,
    # Gate and up, and down.
    "expert_kernel": 2,
    "expert_fp8_kernel": 2,
    # A token's scale or scales, and an expert's hidden numbers.
    "quantize_fp8_kernel": 3,
}


@pytest.mark.slow
def test_one_variant_of_each_kernel_serves_every_number_of_rows_tokens_and_blocks(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(SCRIPT.parents[2] / "bench")}

    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    variants = {name: int(count) for name, count in (line.split() for line in done.stdout.splitlines())}
    assert {"tokens_kernel", "prefill_kernel", "decode_kernel", "draw_kernel", "penalties_kernel"} <= set(variants)
    assert variants == {name: VARIANTS.get(name, 1) for name in variants}
