"""Where the C++ ops come from, and what is said when they cannot be had: the worker then serves with torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from quire_kernels.cpu.build import supported_isa


def found_with(home: Path, path: Path) -> str:
    """What `python -m quire_kernels.cpu` says for a user with that home and those programs."""
    env = {"HOME": str(home), "PATH": str(path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "quire_kernels.cpu"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=True).stdout


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def test_without_a_compiler_torch_serves_and_the_fix_is_named(tmp_path: Path, programs: Path) -> None:
    assert found_with(tmp_path, programs) == "cpu ops: torch; no C++ compiler: install g++\n"


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path, programs: Path) -> None:
    (programs / "g++").write_text("#!/bin/sh\necho 'out of disk' >&2\nexit 1\n")
    (programs / "g++").chmod(0o755)

    said = found_with(tmp_path, programs)

    assert said.startswith("cpu ops: torch;")
    assert "out of disk" in said
    assert list((tmp_path / ".cache/quire/native").iterdir()) == []


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, programs: Path) -> None:
    folder = tmp_path / ".cache/quire/native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    (programs / "g++").write_text("#!/bin/sh\nexit 1\n")
    (programs / "g++").chmod(0o755)

    assert "could be written by others: chmod 700" in found_with(tmp_path, programs)


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ("fpu sse2", None),
        ("avx2 fma bmi2", "avx2"),
        ("avx2 fma bmi2 avx512f avx512bw avx512dq avx512vl avx512_vnni", "avx2"),
        ("avx2 fma bmi2 avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16", "avx2"),
        ("avx2 fma bmi2 avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 avx512vbmi", "avx512"),
    ],
)
def test_the_instruction_set_is_the_best_of_which_nothing_is_missing(
    tmp_path: Path, flags: str, isa: str | None
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")

    assert supported_isa(cpuinfo) == isa
    assert supported_isa(tmp_path / "missing") is None
