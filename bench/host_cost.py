"""Host time of one decode step: Scheduler.plan_step() + commit(), without a model.

    python bench/host_cost.py [--steps 400] [--depth 1] [--json]

Every row decodes one token a step; blocks fill, are hashed and published as in serving (16-token blocks, so one row in sixteen fills
one in each step). Prints the median and the 99th percentile over the steps, in milliseconds, for each number of rows.
"""

import argparse
import gc
import json
import platform
import statistics
import time
from collections import deque

from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.plan import KVGroup, StepPlan, StepResult
from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT_TOKENS = 64


def busy_scheduler(rows: int, steps: int, stop_ids: tuple[int, ...]) -> Scheduler:
    """A scheduler with `rows` requests waiting that each decode for longer than the benchmark runs."""
    length = PROMPT_TOKENS + 2 * steps + 64
    num_blocks = rows * (length // BLOCK_SIZE + 2) + 1
    kv = BlockManager(BlockPool(num_blocks), BLOCK_SIZE, [KVGroup(num_layers=1)])
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
        sampling = SamplingParams(max_tokens=length, eos_token_ids=(149_999,), stop_token_ids=stop_ids)
        rejection = scheduler.add(Submit(request_id=f"request-{index}", prompt_token_ids=prompt, sampling=sampling))
        assert rejection is None, rejection
    return scheduler


def result_of(plan: StepPlan, known: dict[int, int]) -> StepResult:
    """A token for every row whose prompt is complete; `known` follows the tokens still to be computed of each row."""
    for new in plan.new_rows:
        known[new.row] = len(new.token_ids) - new.num_computed
    sampled = []
    for row, count in zip(plan.rows, plan.num_tokens, strict=True):
        known[row] -= count
        if not known[row]:
            known[row] = 1
            sampled.append(row)
    tokens = [[(plan.step_id * 7 + row) % 1000] for row in sampled]
    return StepResult(step_id=plan.step_id, rows=sampled, token_ids=tokens, logprobs=[None] * len(sampled))


def measure(rows: int, steps: int, depth: int, stop_ids: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds of plan_step + commit (+ taking the cache events) per step, once every row decodes."""
    scheduler = busy_scheduler(rows, steps, stop_ids)
    in_flight: deque[tuple[StepPlan, StepResult]] = deque()
    known: dict[int, int] = {}
    times: list[float] = []
    parts: list[float] = []
    gc.collect()
    gc.freeze()
    while len(times) < steps:
        start = time.perf_counter()
        plan = scheduler.plan_step()
        planned = time.perf_counter()
        in_flight.append((plan, result_of(plan, known)))
        if len(in_flight) < depth:
            continue
        oldest, result = in_flight.popleft()
        begin = time.perf_counter()
        outputs = scheduler.commit(oldest, result)
        scheduler.take_cache_events()
        end = time.perf_counter()
        if len(outputs) == rows:
            times.append((planned - start + end - begin) * 1e3)
            parts.append((planned - start) * 1e3)
    gc.unfreeze()
    return {
        "median_ms": statistics.median(times),
        "p99_ms": statistics.quantiles(times, n=100)[98],
        "plan_median_ms": statistics.median(parts),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cases = {"eos only": (), "64 stop ids": tuple(range(140_000, 140_064))}
    results = {
        f"{rows} rows, {name}": measure(rows, arguments.steps, arguments.depth, stop_ids)
        for rows in arguments.rows
        for name, stop_ids in cases.items()
    }
    if arguments.json:
        print(json.dumps(results))
        return
    print(
        f"plan_step + commit, depth {arguments.depth}, Python {platform.python_version()}, {platform.processor() or platform.machine()}"
    )
    for name, values in results.items():
        print(
            f"  {name:24} median {values['median_ms']:7.3f} ms   p99 {values['p99_ms']:7.3f}   plan {values['plan_median_ms']:7.3f}"
        )


if __name__ == "__main__":
    main()
