"""Memory as the kernel tells it, and the warning of a KV cache that cannot fit."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quire_worker.server.host_memory import kv_cache_problem, memory_limit_bytes, resident_bytes

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Callable[[str, str], Path]:
    """A root with one file of the cgroup."""

    def make(name: str, text: str) -> Path:
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("memory.max", "4294967296\n", 4 * GIB),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "4294967296\n", 4 * GIB),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_both_versions_of_cgroups_tell_the_limit(
    root: Callable[[str, str], Path], name: str, text: str, limit: int | None
) -> None:
    assert memory_limit_bytes(root(name, text)) == limit


def test_a_cache_beyond_the_limit_is_named_with_the_fix(root: Callable[[str, str], Path]) -> None:
    here = root("memory.max", str(4 * GIB))

    problem = kv_cache_problem(5 * GIB, "auto", here)
    fitting = [
        kv_cache_problem(3 * GIB, "cpu", here),
        kv_cache_problem(None, "cpu", here),
        kv_cache_problem(5 * GIB, "cuda", here),
    ]

    assert problem is not None
    assert problem.startswith(
        "--kv-cache-memory-bytes 5368709120 does not fit into this container's memory limit of 4294967296"
    )
    assert fitting == [None, None, None]


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert resident_bytes(2**22 + 1) is None
    own = resident_bytes(os.getpid())
    assert own is not None
    assert own > 1_000_000
