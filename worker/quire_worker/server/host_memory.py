"""What the kernel says about memory: of the worker's two processes, and of the limit that they share."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_contract import names

_NO_LIMIT_BYTES = 2**60
"""cgroup v1 writes a huge number where there is no limit."""


def resident_bytes(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Memory of a process that is in RAM; None if there is no such process."""
    try:
        pages = int((proc / str(pid) / "statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The cgroup's memory limit, v2 or v1; None: there is none. `root` is the file system's, for tests."""
    cgroup = root / "sys/fs/cgroup"
    for path in (cgroup / "memory.max", cgroup / "memory/memory.limit_in_bytes"):
        try:
            text = path.read_text("ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _NO_LIMIT_BYTES:
            return int(text)
    return None


def kv_cache_problem(kv_cache_bytes: int | None, device: str, root: Path = Path("/")) -> str | None:
    """What is wrong with a KV cache of that size in the host's memory: the kernel would kill the engine while the cache is filled."""
    limit = memory_limit_bytes(root)
    on_host = device == "cpu" or (device == "auto" and not (root / "dev/nvidiactl").exists())
    if kv_cache_bytes is None or limit is None or not on_host or kv_cache_bytes < limit:
        return None
    return (
        f"--kv-cache-memory-bytes {kv_cache_bytes} does not fit into this container's memory limit of {limit} bytes: "
        "lower it, or raise the limit above weights and KV cache together"
    )


class ResidentMemory(Collector):
    """A gauge with the memory of each process, read when it is asked for."""

    def __init__(self) -> None:
        self._pids: dict[str, Callable[[], int]] = {"api": os.getpid}

    def add(self, process: str, pid: int) -> None:
        """From now on shown as `process`."""
        self._pids[process] = lambda: pid

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            names.QUIRE_WORKER_RESIDENT_MEMORY_BYTES, "Memory of each process that is in RAM.", labels=["process"]
        )
        for process, size in self.sizes().items():
            family.add_metric([process], size)
        yield family

    def sizes(self) -> Mapping[str, int]:
        """Bytes by process; those that are gone are left out."""
        found = {process: resident_bytes(pid()) for process, pid in self._pids.items()}
        return {process: size for process, size in found.items() if size is not None}
