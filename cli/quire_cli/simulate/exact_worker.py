"""A worker that takes every step with the engine's own Scheduler and BlockManager; only the model is replaced by what a step costs.

Prompts get token ids made from their streams' names, so block hashes, prefix hits and KV events are the real ones.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import inf

from quire_cli.simulate.costs import StepCost, WorkerShape
from quire_cli.simulate.job import Told
from quire_cli.simulate.request import Request, Segment
from quire_contract.load_report import LoadReport
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.kv.events import CacheEvent
from quire_worker.plan import KVGroup, StepPlan, StepResult
from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.policies import make_policy
from quire_worker.scheduling.policy import FCFS
from quire_worker.scheduling.prefill_share import MAX_SLOWDOWN, PrefillShare
from quire_worker.scheduling.scheduler import Scheduler
from quire_worker.scheduling.speeds import StepSpeeds

VOCABULARY = 1 << 30
_AGING_S = 300.0


def token_at(stream: int, position: int) -> int:
    """The token of a stream at a position: any function that tells streams and positions apart would do."""
    return ((stream + position) * 0x9E3779B1) % VOCABULARY


def stream_of(name: str) -> int:
    """A number for a stream's name, the same in every process."""
    return int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), "little")


def prompt_of(chain: tuple[Segment, ...]) -> list[int]:
    """The token ids of a prompt."""
    tokens: list[int] = []
    for name, end in chain:
        stream = stream_of(name)
        tokens += [token_at(stream, position) for position in range(len(tokens), end)]
    return tokens


@dataclass(slots=True)
class _Step:
    """A launched step."""

    plan: StepPlan
    sampled: list[int]
    """Rows whose known tokens are all computed."""
    num_tokens: int
    end_s: float
    time_s: float


class _Row:
    """What the runner knows of a row."""

    __slots__ = ("computed", "known", "request_id")

    def __init__(self, request_id: str, computed: int, known: int) -> None:
        self.request_id = request_id
        self.computed = computed
        self.known = known


@dataclass(slots=True)
class _Seen:
    """A request in this worker."""

    request: Request
    stream: int
    count: int = 0
    """Tokens that came."""
    last_s: float = 0.0


class ExactWorker:
    """One replica. Whoever owns it calls `advance` at `due_s`."""

    def __init__(
        self,
        number: int,
        shape: WorkerShape,
        cost: StepCost,
        told: Told,
        clock: Callable[[], float],
        policy: str = FCFS,
    ) -> None:
        self.number = number
        self.due_s = inf
        """When the oldest step under way ends; inf: it is idle."""
        self._shape, self._cost, self._told = shape, cost, told
        self.speeds = StepSpeeds()
        pool = BlockPool(shape.kv_blocks + 1)
        kv = BlockManager(pool, shape.block_size, [KVGroup(1)])
        limits = SchedulerLimits(
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            max_model_len=shape.max_model_len,
            max_num_queued_reqs=shape.max_num_queued_reqs,
            max_num_queued_tokens=1 << 40,
            vocab_size=VOCABULARY,
        )
        share = PrefillShare(max_slowdown=MAX_SLOWDOWN, speeds=self.speeds, max_partial=shape.max_num_partial_prefills)
        self.scheduler = Scheduler(kv, limits, clock, make_policy(policy, kv, self.speeds, clock, _AGING_S), share)
        self._rows: dict[int, _Row] = {}
        self._steps: deque[_Step] = deque()
        self._seen: dict[str, _Seen] = {}
        self._preempted = self._prompt = self._cached = 0
        self.kv_tokens = shape.kv_tokens

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return self.scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests in its queue."""
        return self.scheduler.num_waiting

    @property
    def load(self) -> int:
        """Both."""
        return self.scheduler.num_running + self.scheduler.num_waiting

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens still to be computed, as the engine reports them."""
        return self.scheduler.num_uncached_tokens

    @property
    def kv_used(self) -> int:
        """Tokens of KV that requests hold."""
        return (self._shape.kv_blocks - self.scheduler.num_free_blocks) * self._shape.block_size

    def report(self, now_s: float) -> LoadReport:
        """What routers hear, as engine/load_meter.py makes it."""
        return LoadReport(
            pod=str(self.number),
            model="simulated",
            epoch="",
            ts=now_s,
            kv_seq=0,
            running=self.num_running,
            waiting=self.num_waiting,
            free_blocks=self.scheduler.num_free_blocks,
            total_blocks=self._shape.kv_blocks,
            uncached_tokens=self.uncached_tokens,
            block_size=self._shape.block_size,
            max_num_seqs=self._shape.max_num_seqs,
            prefill_tokens_per_s=self.speeds.prefill_tokens_per_s,
            decode_step_s=self.speeds.decode_step_s,
        )

    def take_cache_events(self) -> list[CacheEvent]:
        """What happened to its prefix cache since the last call."""
        return self.scheduler.take_cache_events()

    def add(self, request: Request, now_s: float) -> None:
        """A request comes in."""
        stream = stream_of(request.chain[-1][0])
        submit = Submit(
            request_id=str(request.number),
            prompt_token_ids=prompt_of(request.chain),
            sampling=SamplingParams(max_tokens=request.output, temperature=0.0, ignore_eos=True),
            priority=request.priority,
        )
        rejection = self.scheduler.add(submit)
        assert rejection is None, f"request {request.number}: {rejection}"
        self._seen[submit.request_id] = _Seen(request, stream, last_s=now_s)
        if not self._steps:
            self._launch(now_s)

    def advance(self, now_s: float) -> None:
        """The oldest step under way ends now."""
        if self._shape.depth > 1:
            self._launch(now_s)
        step = self._steps.popleft()
        tokens = []
        for row in step.sampled:
            seen = self._seen[self._rows[row].request_id] if row in self._rows else None
            tokens.append([0 if seen is None else token_at(seen.stream, seen.request.prompt + seen.count)])
        result = StepResult(
            step_id=step.plan.step_id, rows=step.sampled, token_ids=tokens, logprobs=[None] * len(tokens)
        )
        for output in self.scheduler.commit(step.plan, result):
            self._take(self._seen[output.request_id], now_s, is_last=output.finish_reason is not None)
        self.speeds.add(step.num_tokens, len(step.plan.rows), step.time_s)
        self._count()
        self._launch(now_s)
        self.due_s = self._steps[0].end_s if self._steps else inf

    def close(self) -> None:
        """The replica is gone."""

    def _take(self, seen: _Seen, now_s: float, *, is_last: bool) -> None:
        if seen.count == 0:
            self._told.first(seen.request, now_s)
            if self._told.listener is not None:
                self._told.listener.first_token(seen.request, now_s)
        else:
            gap_s = now_s - seen.last_s
            self._told.gap(gap_s, 1)
        seen.count += 1
        seen.last_s = now_s
        if is_last:
            del self._seen[str(seen.request.number)]
            if self._told.listener is not None:
                self._told.listener.done(seen.request)
            self._told.done(seen.request, now_s)

    def _launch(self, now_s: float) -> None:
        """Plan until `depth` steps are under way."""
        while len(self._steps) < self._shape.depth:
            plan = self.scheduler.plan_step()
            if not plan.rows:
                return
            start_s = max(now_s, self._steps[-1].end_s if self._steps else now_s)
            self._steps.append(self._step(plan, start_s))
            self.due_s = self._steps[0].end_s

    def _step(self, plan: StepPlan, start_s: float) -> _Step:
        for row in plan.freed_rows:
            self._rows.pop(row, None)
        for new in plan.new_rows:
            self._rows[new.row] = _Row(new.request_id, new.num_computed, len(new.token_ids))
        sampled: list[int] = []
        kv_read, pairs = 0, 0.0
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            state = self._rows[row]
            if count == 1:
                kv_read += state.computed
            else:
                pairs += count * (state.computed + count / 2)
            state.computed += count
            if state.computed == state.known:
                state.known += 1
                sampled.append(row)
        num_tokens = sum(plan.num_tokens)
        time_s = self._cost.step_s(len(plan.rows), num_tokens, kv_read, pairs)
        return _Step(plan, sampled, num_tokens, start_s + time_s, time_s)

    def _count(self) -> None:
        counters = self.scheduler.counters
        counters.queue_time_s.clear()
        self._told.num_preemptions += counters.num_preemptions - self._preempted
        self._told.num_prompt += counters.prefix_queries - self._prompt
        self._told.num_cached += counters.prefix_hits - self._cached
        self._preempted, self._prompt, self._cached = (
            counters.num_preemptions,
            counters.prefix_queries,
            counters.prefix_hits,
        )
