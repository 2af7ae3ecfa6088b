"""Who waits for whom: scheduling policies on a mix of short and long jobs, and decoding streams beside long prompts.

    python bench/fairness.py simulate             the real scheduler in simulated time: exact, and thousands of requests in seconds
    python bench/fairness.py real                 the real engine with an 88 M model on this machine's CPU

`simulate` replaces the model by a cost model: a step takes so long, plus so much for each row and for each prompt token. Everything else
(scheduler, blocks, policies, output lengths learnt as they end) is what serves. Jobs arrive as a Poisson process; the same jobs, at the
same times, for every setting.

Policies: a job's latency is from its arrival to its last token, its wait from arrival to its first step. `told` jobs say their length in
max_tokens, `untold` ones ask for 4,096 and end when they end. Prompts: gaps between the tokens of streams, and the time to first token of
short and long prompts that come meanwhile. Answers in one go: the same jobs with and without a bound on steps that nobody reads.
"""

import argparse
import gc
import json
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fairness_jobs import (
    EOS,
    VOCAB_SIZE,
    Job,
    answers_in_one_go,
    at_rate,
    in_one_go_row,
    mix,
    policy_row,
    prompt_row,
    streams_and_prompts,
)

from quire_worker.engine.engine import Engine
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.plan import Handle, KVGroup, Runner, StepPlan, StepResult, TokenMasks
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.policies import make_policy
from quire_worker.scheduling.policy import FCFS, SHORTEST_FIRST
from quire_worker.scheduling.prefill_share import MAX_SLOWDOWN, MAX_SLOWDOWN_UNREAD, UNLIMITED, PrefillShare
from quire_worker.scheduling.scheduler import Scheduler
from quire_worker.scheduling.speeds import StepSpeeds

BLOCK_SIZE = 16
AGING_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a step takes, and what fits."""

    name: str
    step_s: float
    row_s: float
    prompt_token_s: float
    rows: int
    budget: int
    num_blocks: int


GPU = Costs(
    name="8 B on one GPU (8 ms a step, 25,000 prompt tokens/s)",
    step_s=0.008, row_s=0.00003, prompt_token_s=0.00004, rows=64, budget=2048, num_blocks=16_000,
)  # fmt: skip
CPU = Costs(
    name="88 M on two cores (7 ms a step, 2,400 prompt tokens/s)",
    step_s=0.007, row_s=0.0004, prompt_token_s=0.00042, rows=16, budget=2048, num_blocks=4_000,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared."""

    policy: str = FCFS
    max_slowdown: float | None = MAX_SLOWDOWN
    max_partial: int = 4
    max_slowdown_unread: float | None = MAX_SLOWDOWN_UNREAD

    def scheduler(
        self, kv: BlockManager, limits: SchedulerLimits, clock: Callable[[], float], speeds: StepSpeeds
    ) -> Scheduler:
        policy = make_policy(self.policy, kv, speeds, clock, AGING_S)
        share = PrefillShare(
            max_tokens=UNLIMITED,
            max_slowdown=self.max_slowdown,
            max_slowdown_unread=self.max_slowdown_unread,
            speeds=speeds,
            max_partial=self.max_partial,
        )
        return Scheduler(kv, limits, clock, policy, share)


class Clock(Protocol):
    def now(self) -> float: ...
    def wait_until(self, at_s: float) -> None: ...


class SimulatedClock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def wait_until(self, at_s: float) -> None:
        self.now_s = max(self.now_s, at_s)


class RealClock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._start_s

    def wait_until(self, at_s: float) -> None:
        time.sleep(max(0.0, at_s - self.now()))


class CostRunner:
    """Carries out plans by letting the clock go on."""

    def __init__(self, costs: Costs, clock: SimulatedClock, lengths: dict[str, int]) -> None:
        self._costs = costs
        self._clock = clock
        self._lengths = lengths
        self._rows: dict[int, list[int]] = {}
        self._ends: dict[int, int] = {}

    def launch(self, plan: StepPlan) -> Handle:
        for row in plan.freed_rows:
            self._rows.pop(row, None)
        for new in plan.new_rows:
            self._rows[new.row] = [len(new.token_ids), new.num_computed]
            self._ends[new.row] = new.num_prompt_tokens + self._lengths[new.request_id]
        sampled = []
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            state = self._rows[row]
            state[1] += count
            if state[0] == state[1]:
                state[0] += 1
                sampled.append(row)
        costs, num_tokens = self._costs, sum(plan.num_tokens)
        took_s = costs.step_s + len(plan.rows) * costs.row_s + (num_tokens - len(plan.rows)) * costs.prompt_token_s
        tokens = [[EOS if self._rows[row][0] >= self._ends[row] else 5] for row in sampled]
        result = StepResult(step_id=plan.step_id, rows=sampled, token_ids=tokens, logprobs=[None] * len(sampled))
        return _Done(result, self._clock, took_s)

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        del handle, masks

    def close(self) -> None:
        self._rows.clear()


class _Done:
    def __init__(self, result: StepResult, clock: SimulatedClock, took_s: float) -> None:
        self._result = result
        self._clock = clock
        self._took_s = took_s

    def result(self) -> StepResult:
        self._clock.now_s += self._took_s
        return self._result


def serve(jobs: Sequence[Job], engine: Engine, speeds: StepSpeeds, clock: Clock) -> None:
    """Serve `jobs`, ordered by arrival; fills in what became of them."""
    by_name, rng, pending = {job.name: job for job in jobs}, random.Random(1), list(reversed(jobs))
    scheduler = engine.scheduler
    while pending or scheduler.has_work:
        while pending and pending[-1].arrives_s <= clock.now():
            rejection = scheduler.add(pending.pop().submit(rng))
            assert rejection is None, rejection
        if not scheduler.has_work:
            clock.wait_until(pending[-1].arrives_s)
            continue
        start_s = clock.now()
        outputs = engine.step()
        end_s = clock.now()
        scheduler.take_cache_events()
        speeds.add(engine.last_step_tokens, engine.last_step_rows, end_s - start_s)
        for output in outputs:
            assert output.error is None, output.error
            job = by_name[output.request_id]
            if output.queue_time_s is not None:
                job.wait_s = output.queue_time_s
            job.token_s.append(end_s)


def simulate(jobs: Sequence[Job], settings: Settings, costs: Costs) -> tuple[list[Job], Scheduler]:
    """The jobs as they fare under `settings`."""
    jobs = [replace(job, token_s=[]) for job in jobs]
    clock, speeds = SimulatedClock(), StepSpeeds()
    kv = BlockManager(BlockPool(costs.num_blocks), BLOCK_SIZE, [KVGroup(num_layers=1)])
    scheduler = settings.scheduler(kv, limits_of(costs), clock.now, speeds)
    runner: Runner = CostRunner(costs, clock, {job.name: job.output_tokens for job in jobs})
    serve(jobs, Engine(scheduler, runner), speeds, clock)
    return jobs, scheduler


def limits_of(costs: Costs) -> SchedulerLimits:
    return SchedulerLimits(
        max_num_seqs=costs.rows,
        max_num_batched_tokens=costs.budget,
        max_model_len=32_768,
        max_num_queued_reqs=10**6,
        max_num_queued_tokens=10**9,
        vocab_size=VOCAB_SIZE,
    )


# ---- what can be served


def capacity(jobs: Sequence[Job], costs: Costs) -> float:
    """Jobs a second that are served when all wait from the beginning, by the first two thirds of them."""
    served, _ = simulate([replace(job, arrives_s=0.0) for job in jobs], Settings(), costs)
    ends = sorted(job.token_s[-1] for job in served)
    count = 2 * len(ends) // 3
    return count / ends[count - 1]


# ---- what is told


def show(title: str, rows: dict[str, dict[str, float]], digits: int) -> None:
    """As a Markdown table."""
    columns = list(next(iter(rows.values())))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{values[column]:,.{digits}f}' for column in columns)} |")


PROMPT_SETTINGS = {
    "no limit, one prompt at a time": Settings(max_slowdown=None, max_partial=1),
    "no limit, 4 prompts": Settings(max_slowdown=None, max_partial=4),
    "k = 3, 4 prompts": Settings(max_slowdown=3.0, max_partial=4),
    "k = 4, 4 prompts (default)": Settings(),
    "k = 8, 4 prompts": Settings(max_slowdown=8.0, max_partial=4),
}
REAL_SETTINGS = ("no limit, one prompt at a time", "no limit, 4 prompts", "k = 4, 4 prompts (default)")
UNREAD_SETTINGS = {
    "k = 8": Settings(max_slowdown_unread=8.0),
    "k = 16 (default)": Settings(),
    "no limit": Settings(max_slowdown_unread=None),
}
POLICY_SETTINGS = {policy: Settings(policy=policy) for policy in (FCFS, SHORTEST_FIRST)}


def run_simulations(num_jobs: int) -> dict[str, dict[str, dict[str, float]]]:
    """Every table, by its title."""
    tables = {}
    for costs, scale in ((GPU, 500), (CPU, 250)):
        most = capacity(mix(num_jobs, scale, told=True), costs)
        for load in (0.9, 1.1, 1.3):
            for told in (True, False):
                jobs = at_rate(mix(num_jobs, scale, told=told), load * most)
                length = "told" if told else "untold"
                title = f"{costs.name}, load {load}, {length}, {num_jobs} jobs in {jobs[-1].arrives_s:.0f} s; seconds"
                tables[title] = {
                    name: policy_row(*simulate(jobs, each, costs)) for name, each in POLICY_SETTINGS.items()
                }
    for costs, streams, long_tokens in ((GPU, 32, 16_000), (CPU, 8, 4_000)):
        jobs = streams_and_prompts(
            streams=streams, output=1500, long_tokens=long_tokens, long_every_s=4.0, short_every_s=0.31, until_s=14.0
        )
        title = f"{costs.name}, {streams} streams, prompts of {long_tokens:,} every 4 s and of 64 every 0.31 s; milliseconds"
        tables[title] = {name: prompt_row(simulate(jobs, each, costs)[0]) for name, each in PROMPT_SETTINGS.items()}
    return tables | run_in_one_go(num_jobs)


def run_in_one_go(num_jobs: int) -> dict[str, dict[str, dict[str, float]]]:
    """Every table, by its title. The first row is what serves if all of them are streamed."""
    tables = {}
    for costs in (replace(GPU, rows=256, num_blocks=48_000), replace(CPU, rows=256, num_blocks=48_000)):
        jobs = answers_in_one_go(num_jobs // 3)
        most = capacity(jobs, costs)
        for load in (0.9, 1.3):
            arriving = at_rate(jobs, load * most)
            streamed = [replace(job, streamed=True) for job in arriving]
            title = f"{costs.name}, answers in one go, load {load}, {len(jobs)} jobs in {jobs[-1].arrives_s / load / most:.0f} s; seconds"
            tables[title] = {"as streams, k = 4": in_one_go_row(simulate(streamed, Settings(), costs)[0])} | {
                name: in_one_go_row(simulate(arriving, each, costs)[0]) for name, each in UNREAD_SETTINGS.items()
            }
    return tables


# ---- the real engine


def run_real(model_dir: Path, threads: int, num_jobs: int, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Every table, by its title; imports torch."""
    from quire_worker.execution.build import build_runner
    from quire_worker.execution.options import RunnerOptions

    costs = replace(CPU, rows=8, num_blocks=2_000)
    runner, info = build_runner(
        RunnerOptions(
            model_dir=model_dir,
            dtype="bfloat16",
            compute_threads=threads,
            max_model_len=8192,
            max_num_seqs=costs.rows + 8,
            max_num_batched_tokens=costs.budget,
            num_gpu_blocks_override=costs.num_blocks,
        )
    )

    def serve_real(jobs: Sequence[Job], settings: Settings, rows: int) -> tuple[list[Job], Scheduler]:
        jobs = [replace(job, token_s=[]) for job in jobs]
        clock, speeds = RealClock(), StepSpeeds()
        kv = BlockManager(BlockPool(info.num_blocks), info.block_size, info.groups)
        limits = replace(limits_of(costs), max_num_seqs=rows, max_model_len=info.max_model_len)
        scheduler = settings.scheduler(kv, limits, clock.now, speeds)
        engine = Engine(scheduler, runner)
        gc.collect()
        serve(jobs, engine, speeds, clock)
        free_rows(runner, rows)
        return jobs, scheduler

    jobs = at_rate(mix(num_jobs, 100, told=True), num_jobs)
    serve_real(jobs[:8], Settings(), costs.rows)
    title = f"88 M for real, {num_jobs} jobs within about a second, {costs.rows} rows; seconds"
    rows: dict[str, dict[str, float]] = {}
    for number in range(1, rounds + 1):
        for name, each in POLICY_SETTINGS.items():
            rows[f"{name}, round {number}"] = policy_row(*serve_real(jobs, each, costs.rows))
    tables = {title: rows}
    jobs = streams_and_prompts(
        streams=6, output=900, long_tokens=2000, long_every_s=3.0, short_every_s=0.5, until_s=4.0
    )
    tables["88 M for real, 6 streams, a prompt of 2,000 and some of 64; milliseconds"] = {
        name: prompt_row(serve_real(jobs, each, costs.rows + 8)[0])
        for name, each in PROMPT_SETTINGS.items()
        if name in REAL_SETTINGS
    }
    runner.close()
    return tables


def free_rows(runner: Runner, rows: int) -> None:
    """The next scheduler begins with empty rows."""
    plan = StepPlan(
        step_id=0,
        freed_rows=list(range(rows)),
        copies=[],
        new_rows=[],
        rows=[],
        num_tokens=[],
        new_blocks=[],
        replaced_block_ids=[],
    )
    handle = runner.launch(plan)
    runner.sample(handle, None)
    handle.result()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("simulate", "real"))
    parser.add_argument("--jobs", type=int, help="of each mix [1500 simulated, 24 real]")
    parser.add_argument("--rounds", type=int, default=2, help="for real, of the policies in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder that keeps the random checkpoint")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.mode == "simulate":
        tables = run_simulations(args.jobs or 1500)
    else:
        from checkpoints import LLAMA_88M, make_random_checkpoint, work_folder

        with work_folder(args.keep) as folder:
            if not (folder / "config.json").exists():
                make_random_checkpoint(folder, LLAMA_88M)
            tables = run_real(folder, args.threads, args.jobs or 24, args.rounds)
    if args.json:
        print(json.dumps(tables))
        return
    print(f"Python {platform.python_version()}, {platform.machine()}")
    for title, rows in tables.items():
        show(title, rows, 2 if "seconds" in title and "milli" not in title else 1)


if __name__ == "__main__":
    main()
