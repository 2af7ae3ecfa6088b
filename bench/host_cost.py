"""Host time of one decode step without a model: plan, inputs, sampling's bookkeeping, result, commit, message.

    python bench/host_cost.py [--steps 400] [--rows 32 256 1024] [--json]

The real scheduler, block manager, rows, sampler and handle on a CPU; the model is a constant over a vocabulary of 64, so that what is
left is the host's. Every row decodes one token a step; blocks fill, are hashed and published as in serving (16-token blocks,
so one row in sixteen fills one in each step). Prints medians over the steps in milliseconds, by part, and how the whole grows with
the number of rows. `cpu` is the thread's own time: on a busy machine it says what wall time would be on an idle one.
"""

import argparse
import gc
import json
import platform
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import torch

from quire_kernels.ops import Ops, load_ops
from quire_worker.engine.messages import Outputs
from quire_worker.engine.process import tune_collector
from quire_worker.execution.host_steps import HostSteps
from quire_worker.execution.rows import HostRows, RowsShape
from quire_worker.execution.runner import TorchRunner
from quire_worker.execution.sampling_rows import SamplingRows
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.models.decoder import Decoder
from quire_worker.models.step_inputs import StepInputs
from quire_worker.plan import KVGroup
from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT_TOKENS = 64
VOCAB_SIZE = 64
PARTS = ("plan", "inputs", "sample", "result", "commit", "message")
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1, 64 stop ids": {"temperature": 1.0, "stop_token_ids": tuple(range(140_000, 140_064))},
}


@dataclass(kw_only=True)
class Times:
    """Milliseconds of each step."""

    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, marks: list[float], cpu_s: float) -> None:
        """`marks` are the times at which the parts begin, and the last one ends."""
        for part, start, end in zip(PARTS, marks[:-1], marks[1:], strict=True):
            self.parts[part].append((end - start) * 1e3)
        self.wall.append((marks[-1] - marks[0]) * 1e3)
        self.cpu.append(cpu_s * 1e3)

    def summary(self) -> dict[str, float]:
        """Medians, and the 99th percentile of the whole."""
        medians = {f"{part}_ms": statistics.median(values) for part, values in self.parts.items()}
        whole = {"wall_ms": statistics.median(self.wall), "cpu_ms": statistics.median(self.cpu)}
        return whole | {"wall_p99_ms": statistics.quantiles(self.wall, n=100)[98]} | medians


class NullModel:
    """Logits that do not depend on anything."""

    def __init__(self, rows: int) -> None:
        self._logits = torch.zeros(rows, VOCAB_SIZE, dtype=torch.bfloat16)

    def __call__(self, step: StepInputs) -> torch.Tensor | None:
        return self._logits[: step.num_sampled] if step.num_sampled else None


def length_of(steps: int) -> int:
    """Tokens a row has room for: it decodes for longer than the benchmark runs."""
    return PROMPT_TOKENS + 2 * steps + 64


def busy_scheduler(rows: int, steps: int, sampling: dict[str, Any]) -> Scheduler:
    """A scheduler with `rows` requests waiting."""
    length = length_of(steps)
    kv = BlockManager(BlockPool(num_blocks_of(rows, steps)), BLOCK_SIZE, [KVGroup(num_layers=1)])
    limits = SchedulerLimits(
        max_num_seqs=rows,
        max_num_batched_tokens=max(rows, 4096),
        max_model_len=length,
        max_num_queued_reqs=rows,
        max_num_queued_tokens=10**9,
        vocab_size=150_000,
    )
    scheduler = Scheduler(kv, limits, time.monotonic)
    for index in range(rows):
        # Lengths differ, so that blocks do not all fill in the same step.
        prompt = [(index * 31 + position) % 1000 for position in range(PROMPT_TOKENS + index % BLOCK_SIZE)]
        params = SamplingParams(max_tokens=length, eos_token_ids=(149_999,), seed=index, **sampling)
        rejection = scheduler.add(Submit(request_id=f"request-{index}", prompt_token_ids=prompt, sampling=params))
        assert rejection is None, rejection
    return scheduler


def num_blocks_of(rows: int, steps: int) -> int:
    """Enough for every row's whole length."""
    return rows * (length_of(steps) // BLOCK_SIZE + 2) + 1


def null_runner(rows: int, steps: int, ops: Ops) -> TorchRunner:
    """A runner whose model costs nothing."""
    device = torch.device("cpu")
    kv_cache = torch.zeros(num_blocks_of(rows, steps), 1, 2, 1, BLOCK_SIZE, 16, dtype=torch.bfloat16)
    shape = RowsShape(num_rows=rows, max_model_len=length_of(steps), block_size=BLOCK_SIZE, num_groups=1)
    host_rows = HostRows(shape)
    params = SamplingRows(rows, VOCAB_SIZE, device, on_host=True)
    model = cast(Decoder, NullModel(rows))
    return TorchRunner(
        steps=HostSteps(model=model, kv_cache=kv_cache, rows=host_rows, params=params, ops=ops),
        kv_cache=kv_cache,
        rows=host_rows,
        params=params,
        ops=ops,
    )


def measure(rows: int, steps: int, sampling: dict[str, Any], ops: Ops) -> dict[str, float]:
    """Medians over `steps` steps in which every row decodes."""
    scheduler, runner = busy_scheduler(rows, steps, sampling), null_runner(rows, steps, ops)
    encode = msgspec.msgpack.Encoder().encode
    times, now = Times(), time.perf_counter
    tune_collector()
    while len(times.wall) < steps:
        cpu, marks = time.thread_time(), [now()]
        plan = scheduler.plan_step()
        marks.append(now())
        handle = runner.launch(plan)
        marks.append(now())
        runner.sample(handle, None)
        marks.append(now())
        result = handle.result()
        marks.append(now())
        outputs = scheduler.commit(plan, result)
        scheduler.take_cache_events()
        marks.append(now())
        encode(Outputs(items=outputs))
        marks.append(now())
        if len(plan.rows) == sum(plan.num_tokens) == rows:
            times.add(marks, time.thread_time() - cpu)
    gc.unfreeze()
    return times.summary()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ops = load_ops("cpu")
    results = {
        name: {rows: measure(rows, arguments.steps, sampling, ops) for rows in arguments.rows}
        for name, sampling in CASES.items()
    }
    if arguments.json:
        print(json.dumps(results))
        return
    print(
        f"host time of a decode step, Python {platform.python_version()}, {platform.processor() or platform.machine()}"
    )
    for name, by_rows in results.items():
        for rows, values in by_rows.items():
            parts = "  ".join(f"{part} {values[part + '_ms']:.3f}" for part in PARTS)
            whole = f"wall {values['wall_ms']:7.3f} ms  cpu {values['cpu_ms']:7.3f}  p99 {values['wall_p99_ms']:7.3f}"
            print(f"  {rows:5} rows, {name:26} {whole}   {parts}")
        least, most = min(by_rows), max(by_rows)
        if least != most:
            growth = by_rows[most]["cpu_ms"] / by_rows[least]["cpu_ms"]
            print(f"  {least} -> {most} rows ({most / least:.0f}x): {growth:.1f}x")


if __name__ == "__main__":
    main()
