"""n > 1: one choice computes the prompt, the others share its blocks.

The leader is the oldest choice of a request that has not computed the prompt yet. Its siblings stand outside the queue until its
prompt is committed; then each forks the leader's table if it fits into the batch at once, and otherwise queues by its age and
hits the prefix cache like any other choice.
"""

from collections import Counter

from quire_worker.kv.block_manager import BlockManager, Fork
from quire_worker.scheduling.choice import Choice, Status
from quire_worker.scheduling.draft import PlanDraft
from quire_worker.scheduling.waiting_queue import WaitingQueue


class Siblings:
    """Choices that wait for another choice's prompt."""

    def __init__(self, kv: BlockManager, queue: WaitingQueue) -> None:
        self._kv = kv
        self._queue = queue
        self._ready: list[tuple[Choice, Choice]] = []
        """(leader, sibling): may fork in the next step."""
        self.num_waiting = 0
        self.num_tokens = 0
        """Prompt tokens of the waiting siblings."""

    def gather(self, leader: Choice, siblings: list[Choice]) -> None:
        """`siblings`, oldest first, wait for `leader`'s prompt."""
        leader.siblings = siblings
        for sibling in siblings:
            sibling.status = Status.SIBLING
            self._count(sibling, +1)

    def on_prompt_committed(self, leader: Choice) -> None:
        """The leader's prompt is in its blocks: its siblings may fork in the next step."""
        self._ready += [(leader, sibling) for sibling in leader.siblings]
        leader.siblings = []

    def remove(self, sibling: Choice, family: list[Choice]) -> None:
        """Nobody waits for the prompt on behalf of `sibling` any more; `family` are its request's choices."""
        self._count(sibling, -1)
        self._ready = [pair for pair in self._ready if pair[1] is not sibling]
        for choice in family:
            if sibling in choice.siblings:
                choice.siblings.remove(sibling)

    def inherit(self, leader: Choice) -> None:
        """The leader ended before its prompt was committed: the oldest sibling leads the rest."""
        if leader.siblings:
            heir, *rest = leader.siblings
            leader.siblings = []
            heir.siblings = rest
            self._to_queue(heir)

    def requeue_ready(self) -> None:
        """Nothing can be forked any more: ready siblings queue."""
        for _, sibling in self._ready:
            self._to_queue(sibling)
        self._ready = []

    def take_forks(self, draft: PlanDraft) -> list[tuple[Choice, Fork]]:
        """Oldest first, every ready sibling that fits into the step right now; the rest go to the queue.

        A fork recomputes the prompt's last token, for its logits; its own copy of the block is written from there on."""
        forks: list[tuple[Choice, Fork]] = []
        taken: Counter[str] = Counter()
        for leader, sibling in self._ready:
            has_room = len(forks) < min(draft.num_free_rows, draft.tokens_left)
            has_room = has_room and self._queue.has_room(sibling, taken[sibling.origin])
            fork = self._try_fork(leader, sibling) if has_room else None
            if fork is None:
                self._to_queue(sibling)
            else:
                self._count(sibling, -1)
                taken[sibling.origin] += 1
                forks.append((sibling, fork))
        self._ready = []
        return forks

    def _try_fork(self, leader: Choice, sibling: Choice) -> Fork | None:
        if leader.table is None or leader.num_computed < leader.num_prompt:
            return None
        return self._kv.fork(leader.table, sibling.num_prompt - 1, sibling.num_prompt)

    def _to_queue(self, sibling: Choice) -> None:
        self._count(sibling, -1)
        self._queue.push(sibling)

    def _count(self, sibling: Choice, sign: int) -> None:
        self.num_waiting += sign
        self.num_tokens += sign * sibling.num_prompt
