"""The engine as served, without sockets: a runner, and a scheduler over it that can be made afresh."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quire_worker.engine.engine import Engine
from quire_worker.execution.build import build_runner
from quire_worker.execution.handle import StepHandle
from quire_worker.execution.options import RunnerOptions
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.models.safetensors_reader import Checkpoint, open_checkpoint
from quire_worker.plan import Handle, Runner, StepPlan
from quire_worker.request import Submit, TokenLogprobs
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.scheduler import Scheduler


@dataclass
class Outcome:
    """What one request got."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Watched:
    """A runner whose steps are counted."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.sample = runner.sample
        self.close = runner.close
        self.num_chosen = 0
        """Steps that chose their tokens by themselves."""

    def launch(self, plan: StepPlan) -> Handle:
        """As the runner's."""
        handle = self._runner.launch(plan)
        self.num_chosen += isinstance(handle, StepHandle) and handle.chosen is not None
        return handle


class Side:
    """One loaded model."""

    def __init__(self, options: RunnerOptions, open_weights: Callable[[Path], Checkpoint] = open_checkpoint) -> None:
        self.options = options
        self.runner, self.info = build_runner(options, open_weights)
        self.fresh()

    def fresh(
        self, *, depth: int = 1, caching: bool = True, wrap: Callable[[Runner], Runner] = lambda runner: runner
    ) -> Engine:
        """A new scheduler over an empty pool, and an engine that steps it; the last one must have no work left."""
        limits = SchedulerLimits(
            max_num_seqs=self.options.max_num_seqs,
            max_num_batched_tokens=self.options.max_num_batched_tokens,
            max_model_len=self.info.max_model_len,
            max_num_queued_reqs=1 << 20,
            max_num_queued_tokens=1 << 40,
            vocab_size=self.info.vocab_size,
        )
        pool = BlockPool(self.info.num_blocks, len(self.info.groups))
        self.kv = BlockManager(pool, self.info.block_size, self.info.groups, enable_prefix_caching=caching)
        self.scheduler = Scheduler(self.kv, limits, time.monotonic)
        self.engine = Engine(self.scheduler, wrap(self.runner), depth=depth)
        return self.engine

    def generate(self, submits: Sequence[Submit]) -> dict[str, Outcome]:
        """All of them as one continuous batch; request id -> outcome. Raises RuntimeError with what a step raised."""
        for submit in submits:
            rejection = self.scheduler.add(submit)
            if rejection is not None:
                raise RuntimeError(f"{submit.request_id} was rejected: {rejection.message}")
        outcomes = {submit.request_id: Outcome() for submit in submits}
        while self.scheduler.has_work:
            for output in self.engine.step():
                if output.error is not None:
                    raise RuntimeError(f"a step failed: {output.error}")
                outcome = outcomes[output.request_id]
                outcome.token_ids += output.token_ids
                outcome.logprobs += output.logprobs or []
        self.scheduler.check()
        return outcomes

    def close(self) -> None:
        """Give the device's memory back."""
        self.runner.close()
