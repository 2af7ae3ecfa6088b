"""A worker whose steps are taken many at a time: while nothing changes but that each row gets a token, steps add up in closed form.

Same rules as scheduling/planner.py, with the real PrefillShare and StepSpeeds: rows that decode first, prompts share what is left,
newcomers in order while rows and KV last, the youngest gives way when KV runs out. What is coarser: KV is counted in tokens instead of
blocks, a load report is always fresh, and all tokens of a run of steps take the same time. tests/cli/simulate holds it to the exact worker.
"""

import heapq
from bisect import insort
from math import ceil, inf, sqrt
from operator import attrgetter

from quire_cli.simulate.costs import StepCost, WorkerShape
from quire_cli.simulate.job import Job, Told
from quire_cli.simulate.prefix_cache import PrefixCache
from quire_cli.simulate.request import Request
from quire_worker.scheduling.prefill_share import MAX_SLOWDOWN, PrefillShare
from quire_worker.scheduling.speeds import StepSpeeds

_BY_SEQ = attrgetter("seq")


class FastWorker:
    """One replica. Whoever owns it calls `advance` at `due_s`, which `add` may bring nearer."""

    def __init__(self, number: int, shape: WorkerShape, cost: StepCost, told: Told, cache: PrefixCache | None) -> None:
        self.number = number
        self.due_s = inf
        """When `advance` is to be called; inf: it is idle."""
        self._shape, self._cost, self._told, self._cache = shape, cost, told, cache
        self._speeds = StepSpeeds()
        self._share = PrefillShare(
            max_slowdown=MAX_SLOWDOWN, speeds=self._speeds, max_partial=shape.max_num_partial_prefills
        )
        self._waiting: list[Job] = []
        self._prefilling: list[Job] = []
        self._decoding: list[tuple[int, int, Job]] = []
        """(finish_step, seq, job): a heap, in which a preempted job's entry stays until it comes up."""
        self._num_decoding = 0
        self._num_seen = 0
        self._steps = 0
        """Decode steps so far."""
        self._kv_read = 0
        """Tokens that the decoding rows attend to."""
        self._own = 0
        """Tokens of KV that one request alone uses."""
        self._uncached = 0
        self._start_s = 0.0
        self._num_steps = 0
        """Of the run under way."""
        self._linear = self._square = 0.0
        """k steps of it take linear * k + square * k * k seconds."""
        self._counts: list[tuple[Job, int]] = []
        """Prompts in each of its steps, and tokens."""
        self.kv_tokens = shape.kv_tokens

    # ---- what routers and the autoscaler see

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return self._num_decoding + len(self._prefilling)

    @property
    def num_waiting(self) -> int:
        """Requests in its queue."""
        return len(self._waiting)

    @property
    def load(self) -> int:
        """Both."""
        return self._num_decoding + len(self._prefilling) + len(self._waiting)

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens still to be computed."""
        return self._uncached

    @property
    def kv_used(self) -> int:
        """Tokens of KV that requests hold."""
        return self._own + (self._cache.pinned if self._cache is not None else 0)

    @property
    def prefill_tokens_per_s(self) -> float:
        """As it measured; 0.0 before that."""
        return self._speeds.prefill_tokens_per_s

    # ---- requests and time

    def add(self, request: Request, now_s: float) -> None:
        """A request comes in."""
        self._num_seen += 1
        self._waiting.append(Job(request, self._num_seen))
        self._uncached += request.prompt
        if self.due_s == inf:
            self._plan(now_s)
        elif self._num_steps > 1 and len(self._waiting) == 1 and self.num_running < self._shape.max_num_seqs:
            self._cut(now_s)

    def advance(self, now_s: float) -> None:
        """The run of steps that was under way ends now."""
        self._commit(now_s)
        self._plan(now_s)

    def close(self) -> None:
        """The replica is gone."""
        if self._cache is not None:
            self._cache.clear()

    def _cut(self, now_s: float) -> None:
        """The run ends with the step under way (and those launched behind it), so that the newcomer can join."""
        passed = now_s - self._start_s
        if self._square > 0:
            steps = (sqrt(self._linear * self._linear + 4 * self._square * passed) - self._linear) / (2 * self._square)
        else:
            steps = passed / self._linear
        wanted = max(1, ceil(steps - 1e-9)) + self._shape.depth - 1
        if wanted < self._num_steps:
            self._num_steps = wanted
            self.due_s = self._start_s + (self._linear + self._square * wanted) * wanted

    # ---- the end of a run

    def _commit(self, now_s: float) -> None:
        steps, rows = self._num_steps, self._num_decoding
        if rows:
            gap_s = (now_s - self._start_s) / steps
            self._told.gap(gap_s, rows * steps)
            self._steps += steps
            self._kv_read += rows * steps
            self._own += rows * steps
        self._learn(steps, rows, now_s)
        for job, count in self._counts:
            job.computed += count * steps
            self._uncached -= count * steps
            if job.computed >= job.known:
                self._first(job, now_s)
        while self._decoding and self._decoding[0][0] <= self._steps:
            finish_step, _, job = heapq.heappop(self._decoding)
            if job.finish_step == finish_step:
                self._num_decoding -= 1
                self._done(job, now_s)

    def _learn(self, steps: int, rows: int, now_s: float) -> None:
        """What StepSpeeds.add learns of the steps, and of the one without prompts that a real engine makes every now and then."""
        time_s = (now_s - self._start_s) / steps
        prompts = sum(count for _, count in self._counts)
        speeds = self._speeds
        speeds.add(rows + prompts, rows + len(self._counts), time_s, steps)
        if rows and speeds.wants_decoding:
            speeds.add(rows, rows, self._cost.step_s(rows, rows, self._kv_read, 0.0))

    def _first(self, job: Job, now_s: float) -> None:
        """Its prompt is computed (again), and a token came with that."""
        request = job.request
        self._prefilling.remove(job)
        if job.generated == 0:
            self._told.first(request, now_s)
        if self._cache is not None:
            shared = self._cache.store(request.chain, job.known, job.held)
            job.own -= shared
            self._own -= shared
        job.generated += 1
        left = request.output - job.generated
        if left <= 0:
            self._done(job, now_s)
            return
        job.start_step = self._steps
        job.finish_step = self._steps + left
        self._kv_read += job.known
        self._num_decoding += 1
        heapq.heappush(self._decoding, (job.finish_step, job.seq, job))

    def _done(self, job: Job, now_s: float) -> None:
        self._leave(job)
        if self._cache is not None:
            self._cache.store(job.request.chain, job.request.prompt + job.request.output - 1, job.held)
            self._cache.drop(job.held)
        self._told.done(job.request, now_s)

    def _leave(self, job: Job) -> None:
        """Its KV is free again, but for what the cache keeps."""
        self._own -= job.own
        if job.finish_step >= 0:
            since = self._steps - job.start_step
            self._own -= since
            self._kv_read -= job.known + since
            job.generated += since
            job.finish_step = -1

    # ---- the next run

    def _plan(self, now_s: float) -> None:
        room = self.kv_tokens - self._own - (0 if self._cache is None else self._cache.pinned)
        while self._num_decoding > room:
            self._preempt()
            room = self.kv_tokens - self.kv_used
        rows = self._num_decoding
        self._start_s, self._counts = now_s, []
        prompts = self._plan_prompts(rows) if self._waiting or self._prefilling else 0
        if not rows and not prompts:
            assert not self._waiting, "an idle worker has room for the first request of its queue"
            self.due_s = inf
            return
        cost, steps = self._cost, self._steps_alike(rows)
        pairs, growth = 0.0, 0.0
        for job, count in self._counts:
            pairs += count * (job.computed + count / 2)
            growth += count * count
        linear_s = max(cost.weights_s, cost.token_s * (rows + prompts))
        step_s = cost.overhead_s + cost.row_s * (rows + len(self._counts)) + linear_s
        step_s += cost.kv_s * self._kv_read + cost.pair_s * pairs  # StepCost.step_s, in place
        self._square = (cost.kv_s * rows + cost.pair_s * growth) / 2
        self._linear = step_s - self._square
        self._num_steps = steps
        self.due_s = now_s + (self._linear + self._square * steps) * steps
        if self._cache is not None:
            self._cache.trim(self.kv_tokens - self._own - rows * steps)

    def _steps_alike(self, rows: int) -> int:
        """How many steps like the next one follow each other."""
        if self._counts and (len(self._prefilling) > 1 or self._waiting):
            return 1
        steps = 1 << 30
        for job, count in self._counts:
            steps = max(1, (job.known - job.computed) // count)
        if rows:
            while self._decoding[0][2].finish_step != self._decoding[0][0]:
                heapq.heappop(self._decoding)
            room = self.kv_tokens - self.kv_used
            steps = min(steps, self._decoding[0][0] - self._steps, max(1, room // rows))
        return steps

    def _plan_prompts(self, rows: int) -> int:
        """Tokens of prompts in each step of the next run; as Planner's _admit_waiting and _extend_prefilling."""
        share = self._share
        left = share.limit(rows, self._shape.max_num_batched_tokens - rows)
        wants = [job.known - job.computed for job in self._prefilling]
        older = list(self._prefilling)
        for_new = share.for_newcomers(wants, left)
        num_partial = len(wants) if sum(wants) > left else 0
        total = 0
        while for_new > 0 and self._waiting and self.num_running < self._shape.max_num_seqs:
            job = self._waiting[0]
            matched = 0 if self._cache is None else self._cache.match(job.request.chain, job.known - 1)
            count = job.known - matched
            if count > for_new:
                if num_partial >= share.max_partial:
                    break
                count = min(for_new, self._shape.block_size) if num_partial else for_new
                num_partial += 1
            if not self._admit(job, matched):
                break
            self._counts.append((job, count))
            for_new -= count
            total += count
        if older:
            counts = share.split(wants, left - total, for_new)
            self._counts += [(job, count) for job, count in zip(older, counts, strict=True) if count]
            total += sum(counts)
        return total

    def _admit(self, job: Job, matched: int) -> bool:
        """Reserve its whole prompt, or change nothing."""
        size = self._shape.block_size
        need = -(-job.known // size) * size - matched
        held: list[str] = []
        if self._cache is not None:
            held = self._cache.hold(job.request.chain, matched)
        if need > self.kv_tokens - self.kv_used - self._num_decoding:
            if self._cache is not None:
                self._cache.drop(held)
            return False
        self._waiting.pop(0)
        job.computed, job.own, job.held = matched, need, held
        self._own += need
        self._uncached -= matched
        self._prefilling.append(job)
        if job.generated == 0:
            self._told.num_prompt += job.known
            self._told.num_cached += matched
        return True

    def _preempt(self) -> None:
        """The youngest keeps its tokens and computes them again later."""
        running = self._prefilling + [job for finish, _, job in self._decoding if job.finish_step == finish]
        job = max(running, key=_BY_SEQ)
        if job.finish_step >= 0:
            self._num_decoding -= 1
        else:
            self._prefilling.remove(job)
            self._uncached += job.computed
        was_decoding = job.finish_step >= 0
        self._leave(job)
        if was_decoding:
            job.known = job.request.prompt + job.generated
            self._uncached += job.known
        job.computed, job.own = 0, 0
        if self._cache is not None:
            self._cache.drop(job.held)
        job.held = []
        insort(self._waiting, job, key=_BY_SEQ)
        self._told.num_preemptions += 1
