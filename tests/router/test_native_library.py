import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import quire_router
from quire_router.native import build
from quire_router.native.library import native


def test_the_extension_is_there_wherever_tests_run() -> None:
    assert native() is not None, build.find_library().why


@pytest.mark.parametrize("plain", [False, True])
def test_digests_are_those_of_hashlib(plain: bool) -> None:
    rng = random.Random(7)
    samples = [rng.randbytes(size) for size in (*range(200), 4096, 5003)]

    digests = [native().sha256(sample, plain) for sample in samples]

    assert digests == [hashlib.sha256(sample).digest() for sample in samples]


def run_build(home: Path, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """By a copy of the package, in which nothing was compiled."""
    package = Path(quire_router.__file__).parent
    shutil.copytree(package, home / "copy" / package.name, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    environment = {**os.environ, "HOME": str(home), "PATH": path, "PYTHONPATH": str(home / "copy")}
    command = [sys.executable, "-m", "quire_router.native", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    done = run_build(tmp_path, str(tmp_path))

    assert done.returncode == 0
    assert done.stdout == "router: without C++; no C++ compiler: install g++\n"


def test_an_image_is_not_built_without_a_compiler(tmp_path: Path) -> None:
    done = run_build(tmp_path, str(tmp_path), "--out", str(tmp_path / "lib"))

    assert done.returncode == 1
    assert "install g++" in done.stderr


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    compiler.chmod(0o755)

    done = run_build(tmp_path, f"{compiler.parent}:/bin:/usr/bin")

    assert "failed (3): it is broken" in done.stdout
    assert list((tmp_path / ".cache" / "quire" / "router").iterdir()) == []


def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "quire" / "router"
    folder.mkdir(parents=True)
    folder.chmod(0o777)

    done = run_build(tmp_path, str(Path(shutil.which("c++") or "").parent))

    assert "could be written by others" in done.stdout
    assert list(folder.iterdir()) == []
