"""The engine's own figures on one model: decode steps at a ladder of batches, prompts, first tokens, saturation.

Everything goes through the real scheduler, runner and sampler, two steps ahead as in serving; only sockets are missing. Prompts are random,
so no prefix is ever found in the cache.
"""

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpu.device import Deadline
from gpu.sides import Side
from quire_worker.plan import Handle, Runner, StepPlan, StepResult, TokenMasks
from quire_worker.request import SamplingParams, Submit

DEPTH = 2
WASTE_EVERY = 32
"""Steps between two looks at the KV pool."""


class TimedRunner:
    """A runner that notes how long the host spends in it, and waiting for it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.enqueue_s = 0.0
        self.wait_s = 0.0

    def launch(self, plan: StepPlan) -> Handle:
        """As the runner's."""
        start = time.perf_counter()
        handle = self._runner.launch(plan)
        self.enqueue_s += time.perf_counter() - start
        return TimedHandle(handle, self)

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        """As the runner's."""
        assert isinstance(handle, TimedHandle)
        start = time.perf_counter()
        self._runner.sample(handle.inner, masks)
        self.enqueue_s += time.perf_counter() - start

    def close(self) -> None:
        """As the runner's."""
        self._runner.close()


class TimedHandle:
    """A handle whose waiting is noted."""

    def __init__(self, inner: Handle, runner: TimedRunner) -> None:
        self.inner = inner
        self._runner = runner

    def result(self) -> StepResult:
        """As the handle's."""
        start = time.perf_counter()
        result = self.inner.result()
        self._runner.wait_s += time.perf_counter() - start
        return result


class Load:
    """Requests in an engine, and what they have got."""

    def __init__(self, side: Side, *, depth: int = DEPTH, caching: bool = False, seed: int = 0) -> None:
        timed: list[TimedRunner] = []

        def wrap(runner: Runner) -> Runner:
            timed.append(TimedRunner(runner))
            return timed[0]

        self._side = side
        self._engine = side.fresh(depth=depth, caching=caching, wrap=wrap)
        self.timed = timed[0]
        self._rng = random.Random(seed)
        vocab_size = side.info.vocab_size
        self._text = [self._rng.randrange(vocab_size) for _ in range(1 << 17)]
        self._next_id = 0
        self.lengths: dict[str, int] = {}
        """Of running and waiting requests: prompt and output so far."""
        self.waiting: set[str] = set()
        """Those without a first token."""

    def add(self, prompt: int, output: int) -> str:
        """A greedy request of random tokens; its id."""
        start = self._rng.randrange(len(self._text) - prompt)
        request_id = str(self._next_id)
        self._next_id += 1
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        rejection = self._side.scheduler.add(
            Submit(request_id=request_id, prompt_token_ids=self._text[start : start + prompt], sampling=sampling)
        )
        if rejection is not None:
            raise RuntimeError(f"a request of {prompt} + {output} tokens was rejected: {rejection.message}")
        self.lengths[request_id] = prompt
        self.waiting.add(request_id)
        return request_id

    def step(self) -> tuple[int, list[str]]:
        """One step of the engine: (tokens that came, requests that ended)."""
        count, ended = 0, []
        for output in self._engine.step():
            if output.error is not None:
                raise RuntimeError(f"a step failed: {output.error}")
            count += len(output.token_ids)
            self.waiting.discard(output.request_id)
            self.lengths[output.request_id] += len(output.token_ids)
            if output.finish_reason is not None:
                ended.append(output.request_id)
                del self.lengths[output.request_id]
        return count, ended

    def stop(self) -> None:
        """Abort everything and run until nothing is in flight."""
        for request_id in list(self.lengths):
            self._side.scheduler.abort(request_id)
        while self._side.scheduler.has_work:
            self._engine.step()
        self.lengths.clear()

    def kv_waste(self) -> float:
        """Share of the allocated slots that hold nothing."""
        kv = self._side.kv
        allocated = (kv.pool.num_blocks - 1 - kv.pool.num_free) * kv.block_size
        used = sum(length for request_id, length in self.lengths.items() if request_id not in self.waiting)
        return 1 - used / allocated if allocated else 0.0


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Which decode steps are measured."""

    batches: tuple[int, ...] = (1, 8, 32, 64, 128, 256)
    context: int = 1000
    chunks: int = 5
    steps: int = 20


def decode_ladder(side: Side, ladder: Ladder, deadline: Deadline) -> Iterator[tuple[dict[str, Any], Load]]:
    """For each batch its figures, and the load, which then still runs. Rows are added from batch to batch, so contexts grow by the steps
    in between; the figure says the mean."""
    load = Load(side)
    room = side.info.max_model_len - ladder.context - 1
    try:
        for batch in ladder.batches:
            if deadline.left_s <= 0:
                return
            for _ in range(batch - len(load.lengths)):
                load.add(ladder.context, room)
            while load.waiting:
                load.step()
            yield _steps_of(load, ladder, batch), load
    finally:
        load.stop()


def _steps_of(load: Load, ladder: Ladder, batch: int) -> dict[str, Any]:
    for _ in range(4):
        load.step()
    enqueue_s, wait_s = load.timed.enqueue_s, load.timed.wait_s
    contexts = [statistics.fmean(load.lengths.values())]
    chunks = []
    for _ in range(ladder.chunks):
        start = time.perf_counter()
        for _ in range(ladder.steps):
            count, _ = load.step()
            assert count == batch, "a row sat out a step"
        chunks.append((time.perf_counter() - start) / ladder.steps)
    contexts.append(statistics.fmean(load.lengths.values()))
    steps, total_s = ladder.chunks * ladder.steps, sum(chunks) * ladder.steps
    enqueue_s, wait_s = load.timed.enqueue_s - enqueue_s, load.timed.wait_s - wait_s
    return {
        "batch": batch,
        "context": statistics.fmean(contexts),
        "step_s": statistics.median(chunks),
        "slowest_chunk_s": max(chunks),
        "tokens_per_s": batch / statistics.median(chunks),
        "host_enqueue_s": enqueue_s / steps,
        "host_plan_commit_s": (total_s - enqueue_s - wait_s) / steps,
        "host_wait_s": wait_s / steps,
    }


def prefill(side: Side, num_tokens: int, runs: int) -> dict[str, Any]:
    """Seconds from adding a prompt to its first token, nothing else running, one step ahead."""
    load, times = Load(side, depth=1, seed=num_tokens), []
    for _ in range(runs + 1):
        start = time.perf_counter()
        load.add(num_tokens, 1)
        while load.lengths:
            load.step()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    return {
        "prompt": num_tokens,
        "seconds": seconds,
        "tokens_per_s": num_tokens / seconds,
        "first_run_s": times[0],
        "runs": times[1:],
    }


def first_token(side: Side, num_tokens: int, runs: int) -> dict[str, Any]:
    """Time to the first token of an idle engine, as served: two steps ahead, more tokens to come."""
    load, times = Load(side, seed=num_tokens), []
    for _ in range(runs + 1):
        start = time.perf_counter()
        load.add(num_tokens, 8)
        while load.waiting:
            load.step()
        times.append(time.perf_counter() - start)
        while load.lengths:
            load.step()
    load.stop()
    return {"prompt": num_tokens, "seconds": statistics.median(times[1:]), "worst_s": max(times[1:])}


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """Requests without end."""

    prompt: int
    output: int
    seconds: float
    """Measured, after the batch is full."""
    caching: bool = False


def concurrency_of(side: Side, wanted: Saturation) -> int:
    """As many requests as the pool holds at their mean length."""
    info = side.info
    kv_tokens = (info.num_blocks - 1) // len(info.groups) * info.block_size
    return max(1, min(side.options.max_num_seqs, int(0.98 * kv_tokens / (wanted.prompt + wanted.output / 2))))


def saturate(side: Side, wanted: Saturation, deadline: Deadline) -> dict[str, Any]:
    """Output tokens/s of a full batch. It starts as an hour of serving leaves it: requests at every stage of their output, whose earlier
    tokens come as prompt; whoever ends is replaced by a whole request."""
    concurrency = concurrency_of(side, wanted)
    load = Load(side, caching=wanted.caching, seed=wanted.prompt)
    for i in range(concurrency):
        done = i * wanted.output // concurrency
        load.add(wanted.prompt + done, wanted.output - done)
    first = set(load.waiting)
    fill_started = time.perf_counter()
    while first & load.waiting and deadline.left_s > wanted.seconds:
        _, ended = load.step()
        for _ in ended:
            load.add(wanted.prompt, wanted.output)
    fill_s = time.perf_counter() - fill_started
    counted = _count(load, wanted, deadline)
    preemptions = side.scheduler.counters.num_preemptions
    load.stop()
    return {
        "prompt": wanted.prompt,
        "output": wanted.output,
        "concurrency": concurrency,
        "caching": wanted.caching,
        "fill_s": fill_s,
        "was_full": not first & load.waiting,
        "preemptions": preemptions,
        **counted,
    }


def _count(load: Load, wanted: Saturation, deadline: Deadline) -> dict[str, Any]:
    tokens, ended_count, steps, wastes = 0, 0, 0, []
    enqueue_s, wait_s = load.timed.enqueue_s, load.timed.wait_s
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < wanted.seconds and deadline.left_s > 0:
        count, ended = load.step()
        for _ in ended:
            load.add(wanted.prompt, wanted.output)
        tokens, ended_count, steps = tokens + count, ended_count + len(ended), steps + 1
        if steps % WASTE_EVERY == 0:
            wastes.append(load.kv_waste())
    elapsed = max(elapsed, 1e-9)
    steps = max(1, steps)
    return {
        "seconds": elapsed,
        "output_tokens": tokens,
        "tokens_per_s": tokens / elapsed,
        "requests_ended": ended_count,
        "steps": steps,
        "step_s": elapsed / steps,
        "host_enqueue_s": (load.timed.enqueue_s - enqueue_s) / steps,
        "host_wait_s": (load.timed.wait_s - wait_s) / steps,
        "kv_waste": statistics.fmean(wastes) if wastes else None,
    }
