"""Which tokens the next step computes, and what a finished step means for its requests.

Knows requests, blocks and policy; no tensors, sockets or text. No phases: a choice is num_planned catching up with
num_known, whether it prefills, continues a chunk, decodes or starts again after preemption.

    running first, oldest first; then, if nothing was short of blocks, waiting choices first come, first served

Plans in flight. The tokens a launched plan will sample are counted as known (placeholders), so the next plan may compute them.
A plan in flight holds its choices' blocks: those of a finished or preempted choice go back to the pool when the last such plan commits.
"""

import sys
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from quire_worker.kv.block_manager import BlockManager, BlockTable
from quire_worker.kv.block_pool import NULL_BLOCK
from quire_worker.kv.events import CacheEvent
from quire_worker.plan import NewRow, StepPlan, StepResult
from quire_worker.request import FAILURES, ChoiceOutput, Submit, TokenLogprobs
from quire_worker.scheduling.choice import Choice, Status
from quire_worker.scheduling.counters import Counters
from quire_worker.scheduling.draft import PlanDraft, StepInFlight
from quire_worker.scheduling.intake import QueueState, Rejection, choices_of, rejection_of
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.repetition import is_repeating
from quire_worker.scheduling.siblings import Siblings
from quire_worker.scheduling.waiting_queue import WaitingQueue

_BY_AGE = attrgetter("age")


class Scheduler:
    """plan_step() and commit() in turn; up to any number of plans may be in flight between them, committed in order."""

    def __init__(self, kv: BlockManager, limits: SchedulerLimits, clock: Callable[[], float]) -> None:
        """`clock` gives seconds; only differences count."""
        assert kv.num_blocks_for(limits.max_model_len) < kv.pool.num_blocks, (
            "the longest request must fit into the pool"
        )
        self._kv = kv
        self._limits = limits
        self._clock = clock
        self._draft = PlanDraft(limits.max_num_seqs)
        self._requests: dict[str, list[Choice]] = {}
        self._running: list[Choice] = []
        self._leaving: list[Choice] = []
        self._in_flight: deque[StepInFlight] = deque()
        self._next_step_id = 0
        self._next_arrival = 0
        self.queue = WaitingQueue()
        self._siblings = Siblings(kv, self.queue)
        self.counters = Counters()

    # ---- requests in and out

    def add(self, submit: Submit) -> Rejection | None:
        """Queue a request, or say why not; then nothing changed."""
        if submit.request_id in self._requests:
            return Rejection("invalid", f"request_id: {submit.request_id} is already running")
        queue = QueueState(
            self.num_waiting, self.queue.num_tokens + self._siblings.num_tokens, self._draft.num_free_rows
        )
        rejection = rejection_of(submit, self._limits, queue)
        if rejection is not None:
            return rejection
        choices = choices_of(submit, self._next_arrival, self._clock(), self._limits, self._kv)
        self._next_arrival += 1
        self._requests[submit.request_id] = choices
        self.queue.push(choices[0])
        self._siblings.gather(choices[0], choices[1:])
        return None

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """End a request, or one choice of it, without output. Unknown ids are ignored."""
        for candidate in tuple(self._requests.get(request_id, ())):
            if choice is None or candidate.index == choice:
                self._end(candidate)

    def fail(self, choice: Choice, message: str, code: str | None = None) -> ChoiceOutput:
        """End a choice with an error; `code` as in ChoiceOutput."""
        self._end(choice)
        return ChoiceOutput(
            request_id=choice.request_id,
            choice=choice.index,
            token_ids=[],
            finish_reason="error",
            error=message,
            error_code=code,
        )

    @property
    def num_running(self) -> int:
        """Choices in the batch."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Choices outside the batch."""
        return len(self.queue) + self._siblings.num_waiting

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be had now: unused ones and cached ones that nobody references."""
        return self._kv.pool.num_free

    def take_cache_events(self) -> list[CacheEvent]:
        """What happened to the prefix cache since the last call, oldest first."""
        return self._kv.pool.take_events()

    @property
    def num_uncached_tokens(self) -> int:
        """Prompt tokens still to be computed, as far as known: what waiting choices will find in the cache is not."""
        running = sum(max(0, choice.num_prompt - choice.num_computed) for choice in self._running)
        return running + self.queue.num_tokens + self._siblings.num_tokens

    @property
    def has_work(self) -> bool:
        """Whether any choice is running or waiting, or a plan is in flight."""
        return bool(self._requests or self._in_flight)

    # ---- the step

    def plan_step(self) -> StepPlan:
        """The next step, to be launched at once. Empty if there is nothing to compute (now); an empty plan need not be launched."""
        draft = self._draft
        draft.open(self._limits.max_num_batched_tokens)
        self._extend_running(draft)
        if not draft.is_short:
            self._admit_waiting(draft)
        step = draft.close(self._next_step_id)
        if step.choices:
            self._next_step_id += 1
            self._in_flight.append(step)
        return step.plan

    def commit(self, plan: StepPlan, result: StepResult) -> list[ChoiceOutput]:
        """Take in the oldest plan in flight. Returns the new tokens, in the plan's order."""
        if not plan.rows:
            return []
        step = self._in_flight.popleft()
        assert step.plan is plan and result.step_id == plan.step_id, "plans commit in the order of their launch"
        outputs: list[ChoiceOutput] = []
        sampled, num_sampled, index = result.rows, len(result.rows), 0
        is_special = bool(result.failed or result.prompt_logprobs)
        for row, count, choice in zip(plan.rows, plan.num_tokens, step.choices, strict=True):
            choice.num_computed += count
            if is_special and choice.status is not Status.FINISHED:
                outputs += self._take_special(choice, row, result)
            if choice.num_computed >= choice.milestone:
                self._pass_milestone(choice)
            if index < num_sampled and sampled[index] == row:
                if choice.status is not Status.FINISHED:
                    outputs.append(self._take_token(choice, result.token_ids[index], result.logprobs[index]))
                index += 1
            if choice.status is not Status.RUNNING:
                self._settle(choice)
        assert index == num_sampled, "the runner sampled rows that the plan does not hold"
        self._kv.pool.release(step.held_blocks)
        self.counters.num_steps += 1
        self.counters.num_generated_tokens += len(outputs) - len(result.failed)
        return outputs

    def abandon_steps(self, culprit: StepPlan) -> list[Choice]:
        """Forget all plans in flight, whose results will never come, and send everything that runs back to the queue.

        Returns the choices of `culprit`, the plan that raised, which are still wanted."""
        suspects = [c for step in self._in_flight if step.plan is culprit for c in step.choices]
        for step in self._in_flight:
            self._kv.pool.release(step.held_blocks)
        self._in_flight.clear()
        for choice in self._running:
            self.queue.push(choice)
        for choice in self._running + self._leaving:
            self._release(choice)
        self._running, self._leaving = [], []
        self._siblings.requeue_ready()
        self._draft.free_all_rows()
        return [choice for choice in suspects if choice.status is not Status.FINISHED]

    def check(self) -> None:
        """Recount blocks, rows and order; AssertionError on the first contradiction."""
        self._kv.pool.check(self._holders())
        assert [c.age for c in self._running] == sorted(c.age for c in self._running), "the batch is out of order"
        self._draft.check({choice.row for choice in self._running})
        for choice in self._running:
            assert choice.table is not None
            assert choice.num_computed <= choice.num_planned <= choice.capacity
            assert choice.num_planned < choice.num_known
            assert choice.capacity == choice.table.num_blocks * self._kv.block_size
        assert all(choice.is_in_flight for choice in self._leaving), "a choice without plans in flight keeps its blocks"

    # ---- policy

    def _extend_running(self, draft: PlanDraft) -> None:
        """Oldest first, so that what holds blocks finishes before anything new starts. A choice whose last token is on its way
        computes nothing more."""
        for choice in self._running:  # only ever loses its tail meanwhile
            known = choice.num_known
            if known >= choice.max_total:
                continue
            count = min(known - choice.num_planned, draft.tokens_left)
            if not count:
                return
            if choice.num_planned + count > choice.capacity and not self._grow(
                choice, choice.num_planned + count, draft
            ):
                continue
            draft.schedule(choice, count)

    def _grow(self, choice: Choice, num_tokens: int, draft: PlanDraft) -> bool:
        """Blocks for `num_tokens` tokens. The youngest choice gives up its own until they suffice, even `choice` itself; while
        blocks that leave with the plans in flight would suffice, `choice` sits the step out and nobody else is evicted."""
        table = _held(choice)
        while (fresh := self._kv.extend(table, num_tokens)) is None:
            draft.is_short = True
            if self._kv.num_short(table, num_tokens) <= sum(self._kv.num_exclusive(_held(c)) for c in self._leaving):
                return False
            if self._preempt_youngest(draft) is choice:
                return False
        draft.new_blocks += [(choice.row, group, blocks) for group, blocks in enumerate(fresh)]
        choice.capacity = table.num_blocks * self._kv.block_size
        return True

    def _preempt_youngest(self, draft: PlanDraft) -> Choice:
        """The youngest has least to lose and must wait longest anyway. It keeps its tokens and computes them again later."""
        victim = self._running.pop()
        draft.free_row(victim.row)
        self.queue.push(victim)
        self._leave(victim)
        self.counters.num_preemptions += 1
        return victim

    def _admit_waiting(self, draft: PlanDraft) -> None:
        """First come, first served. A head that does not fit waits, so nothing starves; so does one whose token is on its way."""
        for sibling, fork in self._siblings.take_forks(draft):
            draft.copy_blocks(fork.copies, self._kv.pool)
            self._enter(sibling, fork.table, sibling.num_prompt - 1, draft)
        while draft.has_room and (head := self.queue.head) is not None and head.table is None:
            match = self._kv.match_prefix(head.chain, head.num_readable)
            table = self._kv.admit(match, head.num_known)
            if table is None:
                return
            self.counters.prefix_queries += head.num_known if head.reads_cache else 0
            self.counters.prefix_hits += match.num_tokens
            self._enter(self.queue.pop(), table, match.num_tokens, draft)

    def _enter(self, choice: Choice, table: BlockTable, num_cached: int, draft: PlanDraft) -> None:
        """A row for a choice whose table covers all its tokens, the first `num_cached` of them computed."""
        if not choice.was_admitted:
            choice.was_admitted = True
            choice.num_cached = num_cached
            choice.queue_time_s = self._clock() - choice.arrived_s
            self.counters.on_first_admission(choice.num_prompt, num_cached, choice.queue_time_s)
        choice.status = Status.RUNNING
        choice.row = draft.take_row()
        choice.table = table
        choice.capacity = table.num_blocks * self._kv.block_size
        choice.num_computed = choice.num_planned = num_cached
        choice.milestone = self._next_milestone(choice)
        insort(self._running, choice, key=_BY_AGE)
        draft.new_rows.append(_new_row(choice, table))
        draft.schedule(choice, min(choice.num_known - num_cached, draft.tokens_left))

    # ---- effects of a commit

    def _take_token(self, choice: Choice, token_ids: list[int], logprobs: list[TokenLogprobs] | None) -> ChoiceOutput:
        """Append what was sampled, and end the choice if that ends it."""
        (token,) = token_ids
        choice.token_ids.append(token)
        total = len(choice.token_ids)
        reason = stop = None
        if token in choice.ending and total > choice.min_total:
            reason, stop = "stop", token
        elif total >= choice.max_total:
            reason = "length"
        elif choice.repetition is not None and total >= choice.min_total and is_repeating(choice, choice.repetition):
            reason = "repetition"
        if (
            reason is None and logprobs is None and choice.queue_time_s is None
        ):  # the hot path: nothing to tell but the token
            return ChoiceOutput(request_id=choice.request_id, choice=choice.index, token_ids=token_ids)
        output = ChoiceOutput(
            request_id=choice.request_id,
            choice=choice.index,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=reason,
            stop_token_id=stop,
            num_cached_tokens=choice.num_cached,
            queue_time_s=choice.queue_time_s,
            prompt_logprobs=choice.take_prompt_logprobs(),
        )
        choice.num_cached = 0
        choice.queue_time_s = None
        if reason is not None:
            self._end(choice)
        return output

    def _take_special(self, choice: Choice, row: int, result: StepResult) -> list[ChoiceOutput]:
        """What few steps bring: log-probabilities of a prompt, and failures, before others could find the blocks that hold them."""
        code = result.failed.get(row)
        if code is not None:
            return [self.fail(choice, FAILURES[code], code)]
        if row in result.prompt_logprobs:
            choice.prompt_logprobs.append(result.prompt_logprobs[row])
        return []

    def _pass_milestone(self, choice: Choice) -> None:
        """A block filled, or the prompt is complete."""
        if choice.status is Status.FINISHED:
            return
        table = _held(choice)
        self._kv.commit(table, choice.chain, choice.token_ids, choice.num_computed)
        if choice.status is Status.RUNNING:
            for group, index in self._kv.drop_behind(table, choice.num_computed):
                self._draft.replaced.append((choice.row, group, index, NULL_BLOCK))
        if choice.siblings and choice.num_computed >= choice.num_prompt:
            self._siblings.on_prompt_committed(choice)
        choice.milestone = self._next_milestone(choice)

    def _next_milestone(self, choice: Choice) -> int:
        block_size = self._kv.block_size
        block_end = (choice.num_computed // block_size + 1) * block_size if self._kv.follows_blocks else sys.maxsize
        return min(block_end, choice.num_prompt) if choice.siblings else block_end

    # ---- leaving

    def _end(self, choice: Choice) -> None:
        """Nothing more is wanted of `choice`."""
        family = self._requests[choice.request_id]
        family.remove(choice)
        if not family:
            del self._requests[choice.request_id]
        status, choice.status = choice.status, Status.FINISHED
        if status is Status.RUNNING:
            self._running.remove(choice)
            self._draft.free_row(choice.row)
            self._leave(choice)
        elif status is Status.WAITING:
            self.queue.remove(choice)
        else:
            self._siblings.remove(choice, family)
        self._siblings.inherit(choice)

    def _leave(self, choice: Choice) -> None:
        """Blocks go back now, or when the plans in flight that use them have committed."""
        if choice.is_in_flight:
            self._leaving.append(choice)
        else:
            self._release(choice)

    def _settle(self, choice: Choice) -> None:
        """A plan committed for a choice that no longer runs: after the last such plan its blocks go back."""
        if choice.table is not None and not choice.is_in_flight:
            self._leaving.remove(choice)
            self._release(choice)

    def _release(self, choice: Choice) -> None:
        self._kv.release(_held(choice))
        choice.restart()

    def _holders(self) -> Iterator[Sequence[int]]:
        for choice in self._running + self._leaving:
            yield from _held(choice).block_ids
        for step in self._in_flight:
            yield step.held_blocks


def _held(choice: Choice) -> BlockTable:
    assert choice.table is not None, "a choice without blocks"
    return choice.table


def _new_row(choice: Choice, table: BlockTable) -> NewRow:
    """Copies, because the runner keeps its own account of tokens and blocks."""
    return NewRow(
        row=choice.row,
        request_id=choice.request_id,
        token_ids=choice.token_ids.copy(),
        num_prompt_tokens=choice.num_prompt,
        num_computed=choice.num_computed,
        block_ids=[blocks.copy() for blocks in table.block_ids],
        sampling=choice.sampling,
    )
