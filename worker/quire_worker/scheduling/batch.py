"""What runs: the choices in the batch in order of rank, those that left it while plans compute them, and the plan in the making.

Owns rows and who holds blocks; decides nothing.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import attrgetter

from quire_worker.kv.block_manager import BlockManager, BlockTable
from quire_worker.scheduling.choice import Choice, Status
from quire_worker.scheduling.draft import PlanDraft

_BY_RANK = attrgetter("rank")


class Batch:
    """Running choices and their rows."""

    def __init__(self, kv: BlockManager, max_rows: int) -> None:
        self._kv = kv
        self.draft = PlanDraft(max_rows)
        self.running: list[Choice] = []
        """First in rank first."""
        self.rows_held: Counter[str] = Counter()
        """By the client's request whose choices run in them."""
        self.leaving: list[Choice] = []
        """Out of the batch; their blocks go back with the last plan in flight that uses them."""

    def enter(self, choice: Choice, table: BlockTable, num_cached: int, count: int) -> None:
        """A row for a choice whose table covers all its tokens: the first `num_cached` are computed, the next `count` in this step."""
        choice.status = Status.RUNNING
        choice.row = self.draft.take_row()
        choice.table = table
        choice.capacity = table.num_blocks * self._kv.block_size
        choice.num_computed = choice.num_planned = num_cached
        choice.milestone = 0
        insort(self.running, choice, key=_BY_RANK)
        self.rows_held[choice.origin] += 1
        self.draft.add_row(choice, table)
        self.draft.schedule(choice, count)

    def remove(self, choice: Choice) -> None:
        """`choice`, whose status tells already, gives up its row, and its blocks now or when the plans in flight that use them commit."""
        self.running.remove(choice)
        self.rows_held[choice.origin] -= 1
        if not self.rows_held[choice.origin]:
            del self.rows_held[choice.origin]
        self.draft.free_row(choice.row)
        if choice.is_in_flight:
            self.leaving.append(choice)
        else:
            self._release(choice)

    def settle(self, choice: Choice) -> None:
        """A plan committed for a choice that no longer runs: after the last such plan its blocks go back."""
        if choice.table is not None and not choice.is_in_flight:
            self.leaving.remove(choice)
            self._release(choice)

    def dissolve(self) -> list[Choice]:
        """Nothing runs any more and every row is free, whatever was in flight. Returns what ran."""
        stopped = self.running.copy()
        for choice in self.running + self.leaving:
            self._release(choice)
        self.running.clear()
        self.rows_held.clear()
        self.leaving.clear()
        self.draft.free_all_rows()
        return stopped

    def num_blocks_leaving(self) -> int:
        """Blocks that will be free when the plans in flight have committed."""
        return sum(self._kv.num_exclusive(held(choice)) for choice in self.leaving)

    def holders(self) -> Iterator[Sequence[int]]:
        """The blocks that each choice references."""
        for choice in self.running + self.leaving:
            yield from held(choice).block_ids

    def check(self) -> None:
        """AssertionError if rows, order or counts contradict one another."""
        assert [c.rank for c in self.running] == sorted(c.rank for c in self.running), "the batch is out of order"
        assert self.rows_held == Counter(choice.origin for choice in self.running), "rows are not counted right"
        self.draft.check({choice.row for choice in self.running})
        for choice in self.running:
            assert choice.table is not None
            assert choice.num_computed <= choice.num_planned <= choice.capacity
            assert choice.num_planned < choice.num_known
            assert choice.capacity == choice.table.num_blocks * self._kv.block_size
        assert all(choice.is_in_flight for choice in self.leaving), "a choice without plans in flight keeps its blocks"

    def _release(self, choice: Choice) -> None:
        self._kv.release(held(choice))
        choice.restart()


def held(choice: Choice) -> BlockTable:
    """The table of a choice that has one."""
    assert choice.table is not None, "a choice without blocks"
    return choice.table
