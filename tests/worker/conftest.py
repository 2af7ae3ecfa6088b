"""Builders shared by the tests of kv, scheduling and engine."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from quire_worker.engine.engine import Engine
from quire_worker.execution.fake_runner import FakeRunner
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.plan import KVGroup, ModelInfo, Runner, StepPlan, StepResult
from quire_worker.request import ChoiceOutput, SamplingParams, Submit
from quire_worker.scheduling.intake import Rejection
from quire_worker.scheduling.limits import ANY_ROWS, SchedulerLimits, fit_max_model_len
from quire_worker.scheduling.policies import make_policy
from quire_worker.scheduling.policy import FCFS
from quire_worker.scheduling.prefill_share import UNLIMITED, PrefillShare
from quire_worker.scheduling.scheduler import Scheduler
from quire_worker.scheduling.speeds import StepSpeeds

VOCAB_SIZE = 64


class Rig:
    """A small engine around the FakeRunner."""

    def __init__(
        self,
        *,
        blocks: int = 200,
        block_size: int = 4,
        budget: int = 64,
        rows: int = 8,
        depth: int = 1,
        caching: bool = True,
        windows: Sequence[int | None] = (None,),
        max_model_len: int = 256,
        queue: int = 1000,
        queue_tokens: int = 10**6,
        wrap: Callable[[Runner], Runner] = lambda runner: runner,
        policy: str = FCFS,
        aging_s: float = 100.0,
        prefill_tokens: int = UNLIMITED,
        partial: int = 1,
        share: PrefillShare | None = None,
        rows_per_request: int = ANY_ROWS,
    ) -> None:
        """`blocks` counts usable ones, without the null block. The policy believes that a decode step takes 0.1 s and a second prefills
        1000 tokens."""
        groups = [KVGroup(num_layers=1, window=window) for window in windows]
        self.info = ModelInfo(
            vocab_size=VOCAB_SIZE,
            max_model_len=fit_max_model_len(max_model_len, blocks + 1, block_size, len(groups)),
            num_blocks=blocks + 1,
            block_size=block_size,
            groups=groups,
            device="fake",
            dtype="none",
        )
        limits = SchedulerLimits(
            max_num_seqs=rows,
            max_num_batched_tokens=budget,
            max_model_len=self.info.max_model_len,
            max_num_queued_reqs=queue,
            max_num_queued_tokens=queue_tokens,
            vocab_size=VOCAB_SIZE,
            max_rows_per_request=rows_per_request,
        )
        self.time_s = 0.0
        self.pool = BlockPool(self.info.num_blocks, len(groups))
        self.kv = BlockManager(self.pool, block_size, groups, enable_prefix_caching=caching)
        self.speeds = StepSpeeds()
        self.speeds.decode_step_s, self.speeds.prefill_tokens_per_s = 0.1, 1000.0
        clock = lambda: self.time_s  # noqa: E731
        self.scheduler = Scheduler(
            self.kv,
            limits,
            clock,
            make_policy(policy, self.kv, self.speeds, clock, aging_s),
            share or PrefillShare(max_tokens=prefill_tokens, max_partial=partial),
        )
        self.runner = wrap(FakeRunner(self.info, max_num_seqs=rows))
        self.engine = Engine(self.scheduler, self.runner, depth=depth)
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.ends: dict[tuple[str, int], ChoiceOutput] = {}

    def submit(
        self,
        name: str,
        prompt: int | Sequence[int],
        *,
        n: int = 1,
        salt: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        queue_timeout_s: float | None = None,
        origin: str = "",
        is_streamed: bool = True,
        **sampling: Any,
    ) -> Rejection | None:
        """A request; a number makes a prompt of that many tokens of its own."""
        if isinstance(prompt, int):
            prompt = [(hash_of(name) + 7 * i) % VOCAB_SIZE for i in range(prompt)]
        params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **sampling})
        return self.scheduler.add(
            Submit(
                request_id=name,
                prompt_token_ids=list(prompt),
                n=n,
                cache_salt=salt,
                sampling=params,
                priority=priority,
                timeout_s=timeout_s,
                queue_timeout_s=queue_timeout_s,
                origin=origin,
                is_streamed=is_streamed,
            )
        )

    def step(self) -> list[ChoiceOutput]:
        """One engine step, recounted."""
        outputs = self.engine.step()
        self.scheduler.check()
        for output in outputs:
            key = (output.request_id, output.choice)
            assert key not in self.ends, "a choice went on after its end"
            self.tokens.setdefault(key, []).extend(output.token_ids)
            if output.finish_reason is not None:
                self.ends[key] = output
        return outputs

    def run(self, max_steps: int = 20_000) -> dict[tuple[str, int], list[int]]:
        """Step until nothing is left. Returns (request, choice) -> tokens."""
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return self.tokens
            self.step()
        raise AssertionError("the engine does not come to an end")

    def launch(self) -> tuple[StepPlan, StepResult]:
        """Plan and carry out one step without committing it."""
        plan = self.scheduler.plan_step()
        handle = self.runner.launch(plan)
        self.runner.sample(handle, None)
        return plan, handle.result()

    def counts(self, plan: StepPlan) -> dict[str, int]:
        """Request -> tokens in the plan."""
        names = {choice.row: choice.request_id for choice in self.scheduler._batch.running}
        return {names[row]: count for row, count in zip(plan.rows, plan.num_tokens, strict=True)}

    @property
    def num_used_blocks(self) -> int:
        """Blocks that somebody references."""
        return self.info.num_blocks - 1 - self.pool.num_free


def hash_of(name: str) -> int:
    """Small, stable over runs."""
    return sum(name.encode()) * 13


@pytest.fixture
def rig() -> type[Rig]:
    """The class itself: each test builds what it needs."""
    return Rig
