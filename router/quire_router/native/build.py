"""Compiles the C++ of `sources/` into an extension module for this Python, and finds it.

    python -m quire_router.native                  into the user's cache, for whoever installed the package
    python -m quire_router.native --out FOLDER     for images, and for a source tree

Where it comes from, first match: `lib` beside this module; `~/.cache/quire/router`. A router compiles nothing itself: that takes half a
minute, in which its requests would wait. Without a library for its sources it uses its Python. A library is code: a cache folder that
another user could write to is not used.
"""

import hashlib
import os
import shutil
import stat
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

SOURCES = Path(__file__).parent / "sources"
INSTALLED = Path(__file__).parent / "lib"
BUILD_TIMEOUT_S = 300.0
KEPT_LIBRARIES = 16
NO_COMPILER = "no C++ compiler: install g++"
NOT_COMPILED = "not compiled yet: run python -m quire_router.native"
NO_HEADERS = "no headers of this Python: install python3-dev"

_FLAGS = (
    "-std=c++20", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-plt", "-static-libstdc++", "-static-libgcc",
    "-ffp-contract=off",  # costs are added up as Python adds them
    "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Wno-cast-function-type", "-Werror=return-type",
)  # fmt: skip


class Library(msgspec.Struct, frozen=True):
    """A compiled library, or why there is none."""

    path: Path | None
    why: str
    """Where it comes from, or what is missing; for a log line."""


class BuildError(Exception):
    """It cannot be compiled; the message says what is missing, or ends with what the compiler said."""


def find_library(*, may_compile: bool = False) -> Library:
    """The library for this Python. Never raises: without one, `why` says what is missing."""
    installed = INSTALLED / library_name()
    if installed.is_file():
        return Library(installed, "installed")
    try:
        path = _cache_folder() / library_name()
        if path.is_file() and _is_ours(path):
            return Library(path, "cached")
        if not may_compile:
            return Library(None, NOT_COMPILED)
        build_library(path)
    except (OSError, RuntimeError, BuildError) as error:  # RuntimeError: a user without a home
        return Library(None, str(error))
    return Library(path, "compiled now")


def library_name() -> str:
    """The file's name: it changes with sources, flags and Python, so a stale library is never loaded."""
    return f"quire-router-{source_digest()}{sysconfig.get_config_var('EXT_SUFFIX')}"


def source_digest() -> str:
    """Sixteen hex digits over sources and flags."""
    digest = hashlib.sha256(repr(_FLAGS).encode())
    for path in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build_library(path: Path) -> None:
    """Compiles every source, moves the finished library to `path`, and forgets older ones there. BuildError."""
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        raise BuildError(NO_COMPILER)
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise BuildError(NO_HEADERS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
            commands = [
                [compiler, *_FLAGS, f"-I{headers}", "-c", str(s), "-o", str(o)]
                for s, o in zip(sources, objects, strict=True)
            ]
            list(threads.map(_compile, commands))
        finished = Path(folder) / path.name
        _compile([compiler, *_FLAGS, *map(str, objects), "-o", str(finished)])
        finished.chmod(0o755)
        finished.rename(path)
    _forget_old(path.parent)


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} did not end within {BUILD_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")


def _forget_old(folder: Path) -> None:
    """All but the latest few; a process that has one loaded keeps it."""
    found = sorted(folder.glob("quire-router-*.so"), key=lambda path: path.stat().st_mtime)
    for path in found[:-KEPT_LIBRARIES]:
        path.unlink(missing_ok=True)


def _cache_folder() -> Path:
    """Ours alone to write. OSError where that cannot be had."""
    folder = Path.home() / ".cache" / "quire" / "router"
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
