"""What the next step computes.

    the policy lets somebody give way | decoding rows | forked siblings | newcomers, unless blocks ran out | prompts under way

Knows blocks, order and shares; nothing of requests' lives (scheduler.py), tensors or sockets.
"""

from collections.abc import Callable

from quire_worker.kv.block_manager import BlockManager, BlockTable
from quire_worker.scheduling.batch import Batch, held
from quire_worker.scheduling.choice import Choice, Status
from quire_worker.scheduling.counters import Counters
from quire_worker.scheduling.draft import PlanDraft
from quire_worker.scheduling.policy import Policy
from quire_worker.scheduling.preemption_log import FOR_BLOCKS, FOR_SHORTER, PreemptionLog
from quire_worker.scheduling.prefill_share import PrefillShare
from quire_worker.scheduling.siblings import Siblings
from quire_worker.scheduling.waiting_queue import WaitingQueue


class Planner:
    """Fills the batch's draft."""

    def __init__(
        self,
        kv: BlockManager,
        batch: Batch,
        queue: WaitingQueue,
        siblings: Siblings,
        policy: Policy,
        prefill: PrefillShare,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._kv = kv
        self._batch = batch
        self._queue = queue
        self._siblings = siblings
        self._policy = policy
        self._prefill = prefill
        self._counters = counters
        self._clock = clock
        self._log = PreemptionLog(clock)

    def plan(self, max_tokens: int) -> PlanDraft:
        """The draft of a step of at most `max_tokens` tokens."""
        draft = self._batch.draft
        draft.open(max_tokens)
        self._give_way(draft)
        prefilling = self._extend_decoding(draft)
        if not draft.is_short:
            self._fork_siblings(draft)
        if not prefilling and not self._queue:
            return draft
        draft.tokens_left = self._left_for_prompts(draft)
        wants = [choice.num_known - choice.num_planned for choice in prefilling]
        share = self._prefill.for_newcomers(wants, draft.tokens_left)
        if not draft.is_short:
            share = self._admit_waiting(wants, share, draft)
        if prefilling:
            self._extend_prefilling(prefilling, share, draft)
        return draft

    def preempt(self, victim: Choice, reason: str) -> Choice:
        """`victim`, which is not in this step's plan yet, keeps its tokens and computes them again later."""
        victim.num_preemptions += 1
        victim.num_untold_preemptions += 1
        self._counters.num_preemptions += 1
        self._counters.num_preempted_tokens += victim.num_computed
        self._log.on_preemption(victim, reason)
        victim.status = Status.WAITING
        self._batch.remove(victim)
        victim.rank = self._policy.rank(victim)
        self._queue.push(victim)
        return victim

    def _left_for_prompts(self, draft: PlanDraft) -> int:
        """Tokens of the step that prompts may take beside the rows that decode in it. One stream among those suffices to keep it short; so
        does one that sits the step out for want of blocks, whose next token comes after it."""
        waiting_too = self._batch.running if draft.is_short else draft.choices
        is_streamed = any(choice.is_streamed for choice in waiting_too)
        if is_streamed and self._prefill.must_pause:
            return 0
        return self._prefill.limit(len(draft.rows), draft.tokens_left, is_streamed=is_streamed)

    def _give_way(self, draft: PlanDraft) -> None:
        """The policy may let the first of those that wait in at others' expense. Blocks that are about to come free are waited for."""
        head = self._queue.head
        if head is None or head.table is not None or self._batch.leaving:
            return
        victims = self._policy.victims(head, self._batch.running, draft.num_free_rows, len(self._queue))
        for victim in victims:
            victim.num_given_way += 1
            self.preempt(victim, FOR_SHORTER)

    def _extend_decoding(self, draft: PlanDraft) -> list[Choice]:
        """First in rank first, so that what holds blocks finishes before anything new starts. A choice whose last token is on its way
        computes nothing more. Returns those with more than one token to compute, which come after all others."""
        prefilling = []
        for choice in self._batch.running:  # only ever loses its tail meanwhile
            known = choice.num_known
            if known >= choice.max_total:
                continue
            if known - choice.num_planned > 1:
                prefilling.append(choice)
            elif not draft.tokens_left:
                break
            elif known <= choice.capacity or self._grow(choice, known, draft):
                draft.schedule(choice, 1)
        return [choice for choice in prefilling if choice.status is Status.RUNNING]

    def _grow(self, choice: Choice, num_tokens: int, draft: PlanDraft) -> bool:
        """Blocks for `num_tokens` tokens. The last in rank gives up its own until they suffice, even `choice` itself: it has least to lose
        and must wait longest anyway. While blocks that leave with the plans in flight would suffice, `choice` sits the step out and
        nobody else is evicted."""
        table = held(choice)
        while (fresh := self._kv.extend(table, num_tokens)) is None:
            draft.is_short = True
            if self._kv.num_short(table, num_tokens) <= self._batch.num_blocks_leaving():
                return False
            if self.preempt(self._batch.running[-1], FOR_BLOCKS) is choice:
                return False
        draft.new_blocks += [(choice.row, group, blocks) for group, blocks in enumerate(fresh)]
        choice.capacity = table.num_blocks * self._kv.block_size
        return True

    def _fork_siblings(self, draft: PlanDraft) -> None:
        """Choices whose sibling has computed the prompt go on from there: one token each, like a decoding row."""
        for sibling, fork in self._siblings.take_forks(draft):
            draft.copy_blocks(fork.copies, self._kv.pool)
            self._enter(sibling, fork.table, sibling.num_prompt - 1, 1)

    def _admit_waiting(self, wants: list[int], share: int, draft: PlanDraft) -> int:
        """In order of rank. A head that does not fit waits, so nothing starves; so does one whose token is on its way.

        Newcomers get `share` tokens beside prompts under way, which want `wants`. One that does not fit into that takes all of it if it is
        alone, else a block, so that shorter ones can follow it. Returns what they leave."""
        num_partial = len(wants) if sum(wants) > draft.tokens_left else 0
        while share > 0 and draft.num_free_rows and (head := self._queue.head) is not None and head.table is None:
            match = self._kv.match_prefix(head.chain, head.num_readable)
            count = head.num_known - match.num_tokens
            if count > share:
                if num_partial >= self._prefill.max_partial:
                    break
                count = min(share, self._kv.block_size) if num_partial else share
                num_partial += 1
            table = self._kv.admit(match, head.num_known)
            if table is None:
                break
            self._counters.prefix_queries += head.num_known if head.reads_cache else 0
            self._counters.prefix_hits += match.num_tokens
            self._enter(self._queue.pop(), table, match.num_tokens, count)
            share -= count
        return share

    def _extend_prefilling(self, prefilling: list[Choice], for_shorter: int, draft: PlanDraft) -> None:
        """Their blocks are reserved since they were admitted."""
        wants = [choice.num_known - choice.num_planned for choice in prefilling]
        for choice, count in zip(prefilling, self._prefill.split(wants, draft.tokens_left, for_shorter), strict=True):
            if count:
                draft.schedule(choice, count)

    def _enter(self, choice: Choice, table: BlockTable, num_cached: int, count: int) -> None:
        if not choice.was_admitted:
            choice.was_admitted = True
            choice.num_cached = min(num_cached, choice.num_prompt)
            choice.queue_time_s = self._clock() - choice.arrived_s
            self._counters.on_first_admission(choice.num_prompt, choice.num_cached, choice.queue_time_s)
        self._batch.enter(choice, table, num_cached, count)
