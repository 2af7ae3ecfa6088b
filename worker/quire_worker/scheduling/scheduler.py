"""Which tokens the next step computes, and what a finished step means for its requests.

Knows requests, blocks and policy; no tensors, sockets or text. No phases: a choice is num_planned catching up with
num_known, whether it prefills, continues a chunk, decodes or starts again after preemption.

    running first, in order of rank: whoever decodes gets its token, prompts share what is left; then, if nothing was short of blocks,
    waiting choices in order of rank (planner.py)

Plans in flight. The tokens a launched plan will sample are counted as known (placeholders), so the next plan may compute them.
A plan in flight holds its choices' blocks: those of a finished or preempted choice go back to the pool when the last such plan commits.
"""

import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import NULL_BLOCK
from quire_worker.kv.events import CacheEvent
from quire_worker.plan import StepPlan, StepResult
from quire_worker.request import FAILED_GRAMMAR, FAILURES, ChoiceOutput, Submit, TokenLogprobs
from quire_worker.scheduling.batch import Batch, held
from quire_worker.scheduling.choice import Choice, Status
from quire_worker.scheduling.counters import Counters
from quire_worker.scheduling.deadlines import DEADLINE, QUEUE_TIMEOUT, Deadlines
from quire_worker.scheduling.draft import StepInFlight
from quire_worker.scheduling.endings import end_of, ending_of, verdict_on
from quire_worker.scheduling.intake import QueueState, Rejection, choices_of, rejection_of
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.planner import Planner
from quire_worker.scheduling.policy import FirstComeFirstServed, Policy
from quire_worker.scheduling.prefill_share import PrefillShare
from quire_worker.scheduling.siblings import Siblings
from quire_worker.scheduling.step_budget import StepBudget
from quire_worker.scheduling.waiting_queue import WaitingQueue

if TYPE_CHECKING:
    from quire_worker.grammar.matcher import Matcher

_NEVER = float("inf")


class Scheduler:
    """plan_step() and commit() in turn; up to any number of plans may be in flight between them, committed in order."""

    def __init__(
        self,
        kv: BlockManager,
        limits: SchedulerLimits,
        clock: Callable[[], float],
        policy: Policy | None = None,
        prefill: PrefillShare | None = None,
    ) -> None:
        """`clock` gives seconds; only differences count. Without `policy` it is first come, first served; without `prefill` prompts take
        all that decoding rows leave, one after the other."""
        assert kv.num_blocks_for(limits.max_model_len) < kv.pool.num_blocks, (
            "the longest request must fit into the pool"
        )
        self._kv = kv
        self._limits = limits
        self._clock = clock
        self._policy = policy or FirstComeFirstServed()
        self._deadlines = Deadlines()
        self._requests: dict[str, list[Choice]] = {}
        self._begun_elsewhere: list[Choice] = []
        """Came with output, and `end_complete` has not looked at them."""
        self._batch = Batch(kv, limits.max_num_seqs)
        self.budget = StepBudget(limits.max_num_batched_tokens, limits.max_num_seqs)
        self._in_flight: deque[StepInFlight] = deque()
        self._next_step_id = 0
        self._next_arrival = 0
        self.queue = WaitingQueue(self._batch.rows_held, limits.max_rows_per_request)
        self._siblings = Siblings(kv, self.queue)
        self.counters = Counters()
        self._planner = Planner(
            kv, self._batch, self.queue, self._siblings, self._policy, prefill or PrefillShare(), self.counters, clock
        )

    # ---- requests in and out

    def add(self, submit: Submit) -> Rejection | None:
        """Queue a request, or say why not; then nothing changed."""
        rejection = self.refusal_of(submit)
        if rejection is not None:
            return rejection
        now_s = self._clock()
        choices = choices_of(submit, self._next_arrival, now_s, self._limits, self._kv)
        for choice in choices:
            choice.priority = submit.priority
            choice.rank = self._policy.rank(choice)
        for kind, timeout_s in ((QUEUE_TIMEOUT, submit.queue_timeout_s), (DEADLINE, submit.timeout_s)):
            if timeout_s is not None:
                self._deadlines.add(kind, now_s + timeout_s, submit.request_id, self._next_arrival)
        self._next_arrival += 1
        self._requests[submit.request_id] = choices
        if submit.output_token_ids:
            self._begun_elsewhere += choices
        self.queue.push(choices[0])
        self._siblings.gather(choices[0], choices[1:])
        return None

    def refusal_of(self, submit: Submit, *, num_ahead: int = 0, num_tokens_ahead: int = 0) -> Rejection | None:
        """Why `add` would refuse a request, if choices with so many prompt tokens together stood before it; None if it would not."""
        if submit.request_id in self._requests:
            return Rejection("invalid", f"request_id: {submit.request_id} is already running")
        num_tokens = self.queue.num_tokens + self._siblings.num_tokens + num_tokens_ahead
        queue = QueueState(self.num_waiting + num_ahead, num_tokens, self._batch.draft.num_free_rows)
        return rejection_of(submit, self._limits, queue)

    def constrain(self, request_id: str, matchers: "Sequence[Matcher]") -> None:
        """The choices of a request that was just added must match a grammar: one matcher for each, in their order."""
        for choice, matcher in zip(self._requests[request_id], matchers, strict=True):
            choice.matcher = matcher

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """End a request, or one choice of it, without output. Unknown ids are ignored."""
        for candidate in tuple(self._requests.get(request_id, ())):
            if choice is None or candidate.index == choice:
                self._end(candidate, of_itself=choice is not None)  # one of several ends early by a stop string

    def fail(
        self, choice: Choice, message: str, code: str | None = None, *, finish_reason: str = "error"
    ) -> ChoiceOutput:
        """End a choice with an error; `code` as in ChoiceOutput."""
        self._end(choice)
        return end_of(choice, finish_reason, error=message, error_code=code)

    def expire(self) -> list[ChoiceOutput]:
        """End what is out of time: requests not in the batch when their queue timeout passes, and all whose deadline does."""
        if self._deadlines.next_s == _NEVER or self._deadlines.next_s > (now_s := self._clock()):
            return []
        ended = []
        for kind, request_id, arrival in self._deadlines.take_due(now_s):
            family = tuple(self._requests.get(request_id, ()))
            is_other = any(choice.age[0] != arrival for choice in family)
            has_begun = any(choice.was_admitted for choice in family)
            if not is_other and not (kind == QUEUE_TIMEOUT and has_begun):
                ended += [
                    self.fail(choice, "running" if has_begun else "waiting", finish_reason=kind) for choice in family
                ]
        self._deadlines.forget_ended(self._requests)
        return ended

    def end_complete(self) -> list[ChoiceOutput]:
        """End the choices that were begun elsewhere and whose last token was their last: whoever made it did not come to say so."""
        if not self._begun_elsewhere:
            return []
        ended, came, self._begun_elsewhere = [], self._begun_elsewhere, []
        for choice in came:
            if choice.status is Status.FINISHED:
                continue
            reason, stop = ending_of(choice, None if choice.matcher is None else choice.matcher.verdict())
            if reason is not None:
                ended.append(self._end_told(choice, reason, stop))
        return ended

    def _end_told(self, choice: Choice, reason: str, stop: int | None) -> ChoiceOutput:
        self._end(choice, of_itself=reason == "stop")
        return end_of(choice, reason, stop=stop)

    def end_by_grammar(self, choice: Choice, reason: str) -> ChoiceOutput | None:
        """End a choice whose grammar leaves no token: with "stop", because it is complete, or with "error".

        None: it ends when the step that computes its prompt commits, as it has to tell the prompt's log-probabilities."""
        assert choice.matcher is not None
        if reason == "stop" and choice.sampling.prompt_logprobs is not None:
            choice.ends_empty = True
            return None
        self._end(choice)
        return end_of(choice, reason)

    @property
    def num_running(self) -> int:
        """Choices in the batch."""
        return len(self._batch.running)

    @property
    def num_waiting(self) -> int:
        """Choices outside the batch."""
        return len(self.queue) + self._siblings.num_waiting

    @property
    def num_deferred(self) -> int:
        """Of those outside the batch, those that wait for another choice's prompt or for a trial's end, not for a row and blocks."""
        return self._siblings.num_waiting + self.queue.num_aside

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be had now: unused ones and cached ones that nobody references."""
        return self._kv.pool.num_free

    def drop_cache(self) -> None:
        """Forget all content that nobody uses."""
        self._kv.pool.drop_idle()

    def take_cache_events(self) -> list[CacheEvent]:
        """What happened to the prefix cache since the last call, oldest first."""
        return self._kv.pool.take_events()

    @property
    def num_uncached_tokens(self) -> int:
        """Prompt tokens still to be computed, as far as known: what waiting choices will find in the cache is not."""
        running = sum(max(0, choice.num_prompt - choice.num_computed) for choice in self._batch.running)
        return running + self.queue.num_tokens + self._siblings.num_tokens

    @property
    def has_work(self) -> bool:
        """Whether any choice is running or waiting, or a plan is in flight."""
        return bool(self._requests or self._in_flight)

    # ---- the step

    def plan_step(self) -> StepPlan:
        """The next step, to be launched at once. Empty if there is nothing to compute (now); an empty plan need not be launched."""
        draft = self._planner.plan(self.budget.num_tokens)
        step = draft.close(self._next_step_id)
        if step.choices:
            self._next_step_id += 1
            self._in_flight.append(step)
        return step.plan

    def constrained(self, plan: StepPlan) -> list[tuple[int, Choice]]:
        """(row, choice) of those that a plan in flight samples under a grammar."""
        return next(step.constrained for step in reversed(self._in_flight) if step.plan is plan)

    def commit(self, plan: StepPlan, result: StepResult) -> list[ChoiceOutput]:
        """Take in the oldest plan in flight. Returns the new tokens, in the plan's order."""
        if not plan.rows:
            return []
        step = self._in_flight.popleft()
        assert step.plan is plan and result.step_id == plan.step_id, "plans commit in the order of their launch"
        outputs: list[ChoiceOutput] = []
        sampled, num_sampled, index = result.rows, len(result.rows), 0
        is_special, num_failed = bool(result.failed or result.prompt_logprobs), 0
        for row, count, choice in zip(plan.rows, plan.num_tokens, step.choices, strict=True):
            choice.num_computed += count
            if is_special and choice.status is not Status.FINISHED:
                failed = self._take_special(choice, row, result)
                outputs += failed
                num_failed += len(failed)
            if choice.num_computed >= choice.milestone:
                self._pass_milestone(choice)
            if index < num_sampled and sampled[index] == row:
                if choice.status is not Status.FINISHED:
                    outputs.append(self._take_token(choice, result.token_ids[index], result.logprobs[index]))
                index += 1
            if choice.status is not Status.RUNNING:
                self._batch.settle(choice)
        assert index == num_sampled, "the runner sampled rows that the plan does not hold"
        self._kv.pool.release(step.held_blocks)
        self.counters.num_steps += 1
        self.budget.on_good_step()
        self.counters.num_generated_tokens += len(outputs) - num_failed
        return outputs

    def abandon_steps(self, culprit: StepPlan) -> list[Choice]:
        """Forget all plans in flight, whose results will never come, and send everything that runs back to the queue.

        Returns the choices of `culprit`, the plan that raised, which are still wanted."""
        suspects = [c for step in self._in_flight if step.plan is culprit for c in step.choices]
        for step in self._in_flight:
            self._kv.pool.release(step.held_blocks)
        self._in_flight.clear()
        for choice in self._batch.dissolve():
            self.queue.push(choice)
        self._siblings.requeue_ready()
        return [choice for choice in suspects if choice.status is not Status.FINISHED]

    def check(self) -> None:
        """Recount blocks, rows and order; AssertionError on the first contradiction."""
        held_by_steps = (step.held_blocks for step in self._in_flight)
        self._kv.pool.check(chain(self._batch.holders(), held_by_steps))
        self._batch.check()

    # ---- effects of a commit

    def _take_token(self, choice: Choice, token_ids: list[int], logprobs: list[TokenLogprobs] | None) -> ChoiceOutput:
        """Append what was sampled, and end the choice if that ends it."""
        if choice.ends_empty:
            return self._end_empty(choice)
        (token,) = token_ids
        choice.token_ids.append(token)
        matcher = choice.matcher
        reason, stop = ending_of(choice, None if matcher is None else verdict_on(choice, matcher))
        if (
            reason is None and logprobs is None and choice.queue_time_s is None and not choice.num_untold_preemptions
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
            error=matcher.failure if matcher is not None and reason == "error" else None,
            error_code=FAILED_GRAMMAR if reason == "error" else None,
            num_preemptions=choice.take_preemptions(),
        )
        choice.num_cached = 0
        choice.queue_time_s = None
        if reason is not None:
            self._end(choice, of_itself=reason == "stop")
        return output

    def _end_empty(self, choice: Choice) -> ChoiceOutput:
        output = ChoiceOutput(
            request_id=choice.request_id,
            choice=choice.index,
            token_ids=[],
            finish_reason="stop",
            queue_time_s=choice.queue_time_s,
            prompt_logprobs=choice.take_prompt_logprobs(),
            num_preemptions=choice.take_preemptions(),
        )
        self.counters.num_generated_tokens -= 1  # commit counts each output that `_take_token` makes as a token
        self._end(choice, of_itself=True)
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
        table = held(choice)
        self._kv.commit(table, choice.chain, choice.token_ids, choice.num_computed)
        if choice.status is Status.RUNNING:
            for group, index in self._kv.drop_behind(table, choice.num_computed):
                self._batch.draft.replaced.append((choice.row, group, index, NULL_BLOCK))
        if choice.siblings and choice.num_computed >= choice.num_prompt:
            self._siblings.on_prompt_committed(choice)
        choice.milestone = self._next_milestone(choice)

    def _next_milestone(self, choice: Choice) -> int:
        block_size = self._kv.block_size
        block_end = (choice.num_computed // block_size + 1) * block_size if self._kv.follows_blocks else sys.maxsize
        return min(block_end, choice.num_prompt) if choice.siblings else block_end

    # ---- leaving

    def _end(self, choice: Choice, *, of_itself: bool = False) -> None:
        """Nothing more is wanted of `choice`."""
        self._policy.on_end(choice, of_itself=of_itself)
        if choice.was_admitted:
            self.counters.on_end(len(choice.token_ids) - choice.num_prompt)
        family = self._requests[choice.request_id]
        family.remove(choice)
        if not family:
            del self._requests[choice.request_id]
        status, choice.status = choice.status, Status.FINISHED
        if status is Status.RUNNING:
            self._batch.remove(choice)
        elif status is Status.WAITING:
            self.queue.remove(choice)
        else:
            self._siblings.remove(choice, family)
        self._siblings.inherit(choice)
