"""Options of `quire simulate` as values: durations, and what is built from them."""

import re
from dataclasses import dataclass
from pathlib import Path

from quire_cli.errors import CommandError
from quire_cli.simulate.costs import StepCost, WorkerShape, read_cost_file
from quire_cli.simulate.presets import find_gpu, find_model, step_cost, worker_shape

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
MAX_WORKERS = 1000


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What a worker is."""

    model: str
    gpu: str
    gpus_per_worker: int
    max_num_seqs: int
    max_model_len: int | None
    cost: Path | None
    price_per_hour: float | None


@dataclass(frozen=True, kw_only=True)
class WorkerKind:
    """The same, built."""

    shape: WorkerShape
    cost: StepCost
    price_per_hour: float
    words: str


def duration_s(text: str, flag: str) -> float:
    """Seconds of "90s", "50ms", "24h" or a bare number of seconds. CommandError naming the flag."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s|min|m|h|d)?\s*", text)
    if match is None:
        raise CommandError(f"{flag}: {text!r} is no duration; write a number and ms, s, m, h or d, such as 90s")
    return float(match[1]) * _UNITS[match[2] or "s"]


def worker_kind(options: WorkerOptions) -> WorkerKind:
    """From a measurement, or from a model and a GPU. CommandError naming the flag and the fix."""
    if options.cost is not None:
        found = read_cost_file(options.cost)
        return WorkerKind(
            shape=found.worker, cost=found.cost, price_per_hour=options.price_per_hour or 0.0, words=found.measured
        )
    model, gpu = find_model(options.model), find_gpu(options.gpu)
    count = options.gpus_per_worker
    price = gpu.price_per_hour * count if options.price_per_hour is None else options.price_per_hour
    return WorkerKind(
        shape=worker_shape(model, gpu, count, options.max_num_seqs, options.max_model_len),
        cost=step_cost(model, gpu, count),
        price_per_hour=price,
        words=f"{options.model} on {count} x {options.gpu}, by data sheet",
    )
