"""Compiles the C++ ops of `native/` into one library for each instruction set, and finds the one this machine can run.

    python -m quire_kernels.cpu                  what this machine will use, compiled now if need be
    python -m quire_kernels.cpu --out FOLDER     for images: both libraries, on whatever machine builds the image

Where a library comes from, first match: `native/lib` beside this module (what an image was built with); `~/.cache/quire/native`, into
which it is compiled on first use, once for a version of the sources. No compiler, or a processor without AVX2: none, and the callers
use torch. A library is code: a cache folder that another user could write to is not used.
"""

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
INSTALLED = SOURCES / "lib"
BUILD_TIMEOUT_S = 300.0
KEPT_LIBRARIES = 4
NO_COMPILER = "no C++ compiler: install g++"
ISAS = ("avx512", "avx2")

_FLAGS = (
    "-std=c++20", "-O3", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=off", "-static-libstdc++", "-static-libgcc",
    "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-Werror=return-type",
)  # fmt: skip
_FLAGS_OF = {
    "avx512": ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mavx512vbmi", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
}
_NEEDED = {
    # Processors with BF16 and without VBMI (Cooper Lake) are few enough for the other library to do.
    "avx512": {
        "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni", "avx512vbmi", "avx2", "fma",
    },
    "avx2": {"avx2", "fma", "bmi2"},
}  # fmt: skip


@dataclass(frozen=True)
class Library:
    """A compiled library, or why there is none."""

    path: Path | None
    isa: str
    """avx512 | avx2; empty without a path."""
    why: str
    """Where it comes from, or what is missing; for a log line."""


class BuildError(Exception):
    """The compiler refused; the message ends with what it said."""


def find_library() -> Library:
    """The library for this processor, compiled now if need be. Never raises: without one, `why` says what is missing."""
    isa = supported_isa(Path("/proc/cpuinfo"))
    if isa is None:
        return Library(None, "", "this processor has no AVX2 with FMA")
    installed = INSTALLED / library_name(isa)
    if installed.is_file():
        return Library(installed, isa, "installed")
    compiler = find_compiler()
    if compiler is None:
        return Library(None, "", NO_COMPILER)
    try:
        folder = _cache_folder()
        path = folder / library_name(isa)
        if path.is_file() and _is_ours(path):
            return Library(path, isa, "cached")
        build_library(compiler, isa, path)
        _forget_old(folder, isa)
    except (OSError, RuntimeError, BuildError) as error:  # RuntimeError: a user without a home
        return Library(None, "", str(error))
    return Library(path, isa, "compiled now")


def library_name(isa: str) -> str:
    """The file's name: it changes with the sources and flags, so a stale library is never loaded."""
    return f"libquire-{isa}-{source_digest(isa)}.so"


def source_digest(isa: str) -> str:
    """Sixteen hex digits over sources and flags."""
    digest = hashlib.sha256(repr((_FLAGS, _FLAGS_OF[isa])).encode())
    for path in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def supported_isa(cpuinfo: Path) -> str | None:
    """The best instruction set of which the processor has all that is needed; None where it has neither."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    flags = next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
    return next((isa for isa, needed in _NEEDED.items() if needed <= flags), None)


def find_compiler() -> str | None:
    """c++, g++ or clang++, whichever is there."""
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def build_library(compiler: str, isa: str, path: Path) -> None:
    """Compiles every source and moves the finished library to `path`. Raises BuildError with the compiler's words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        flags = [*_FLAGS, *_FLAGS_OF[isa]]
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
            commands = [[compiler, *flags, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
            list(threads.map(_compile, commands))
        finished = Path(folder) / path.name
        _compile([compiler, *flags, *map(str, objects), "-o", str(finished)])
        finished.chmod(0o755)
        finished.rename(path)


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} did not end within {BUILD_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")


def _forget_old(folder: Path, isa: str) -> None:
    """All but the latest few; a process that has one loaded keeps it."""
    found = sorted(folder.glob(f"libquire-{isa}-*.so"), key=lambda path: path.stat().st_mtime)
    for path in found[:-KEPT_LIBRARIES]:
        path.unlink(missing_ok=True)


def _cache_folder() -> Path:
    """Ours alone to write. Raises OSError where that cannot be had."""
    folder = Path.home() / ".cache" / "quire" / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_under_others = any(
        above.stat().st_uid not in (0, os.geteuid()) for above in (folder.parent, folder.parent.parent)
    )
    if is_under_others or not _is_ours(folder):
        raise PermissionError(f"{folder} could be written by others: chmod 700 it")
    return folder


def _is_ours(path: Path) -> bool:
    info = path.stat()
    return info.st_uid == os.geteuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
