"""The device under test: what it is, how time is read on it, and how output reaches files.

Everything here also works on a CPU, so that the commands can be rehearsed where no GPU is.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from quire_kernels.launch_configs import device_kind_of

ROOT = Path(__file__).parents[2]
_QUERY = "clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu,driver_version"


def describe(device: torch.device) -> dict[str, Any]:
    """What a figure depends on: device, driver, clocks, versions."""
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "kind": "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in ("triton", "numpy", "msgspec", "safetensors", "transformers")},
        "cores": len(os.sched_getaffinity(0)),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "kind": device_kind_of(properties.name),
            "cuda": torch.version.cuda,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", 0),
            "smi": smi(),
        }
    return facts


def smi() -> dict[str, str]:
    """Clocks, power and driver as nvidia-smi reads them now; empty where it is missing. Only reads."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return {}
    lines = done.stdout.strip().splitlines()
    return dict(zip(_QUERY.split(","), map(str.strip, lines[0].split(",")), strict=False)) if lines else {}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(run: Callable[[], object], device: torch.device, *, repeats: int = 10, warm_ups: int = 2) -> float:
    """Median seconds of `run` on the device's own clock, launches included where they are slower than the work."""
    for _ in range(warm_ups):
        run()
    return statistics.median(_seconds([run] * repeats, device))


def time_rotating(runs: Sequence[Callable[[], object]], device: torch.device, *, budget_s: float = 0.25) -> float:
    """Median seconds of one of `runs`, which do the same to different memory, so that no cache serves the next one.

    On a GPU they are captured as one graph, so that launching costs nothing; what cannot be captured is launched one by one.
    """
    for run in runs:
        run()
    synchronise(device)
    replay = _captured(runs) if device.type == "cuda" else None
    once, per_call = (_all_of(runs), len(runs)) if replay is None else (replay, len(runs))
    (first,) = _seconds([once], device)
    repeats = max(3, min(50, int(budget_s / max(first, 1e-7))))
    return statistics.median(_seconds([once] * repeats, device)) / per_call


def _all_of(runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
    def run_all() -> None:
        for run in runs:
            run()

    return run_all


def _captured(runs: Sequence[Callable[[], object]]) -> Callable[[], object] | None:
    """A graph of all runs; None if they cannot be captured (they wait for the device, say)."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for run in runs:
                run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def _seconds(runs: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    if device.type != "cuda":
        times = []
        for run in runs:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return times
    make: Any = torch.cuda.Event
    events = [(make(enable_timing=True), make(enable_timing=True)) for _ in runs]
    for run, (start_event, end_event) in zip(runs, events, strict=True):
        start_event.record()
        run()
        end_event.record()
    torch.cuda.synchronize(device)
    return [start_event.elapsed_time(end_event) / 1e3 for start_event, end_event in events]


def host_seconds(run: Callable[[], object], device: torch.device, calls: int = 50) -> float:
    """Median seconds the host spends in `run`, which only enqueues work."""
    run()
    synchronise(device)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    synchronise(device)
    return statistics.median(times)


def write_json(path: Path, value: object) -> None:
    """Whole or not at all: a reader never finds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


class Deadline:
    """What is left of a command's time."""

    def __init__(self, limit_s: float) -> None:
        self._end = time.monotonic() + limit_s

    @property
    def left_s(self) -> float:
        """Seconds; negative once it is over."""
        return self._end - time.monotonic()
