"""A plan while it is being made, and the record of it once it is in flight."""

import heapq

from quire_worker.kv.block_manager import BlockTable
from quire_worker.kv.block_pool import BlockPool
from quire_worker.plan import NewRow, StepPlan
from quire_worker.scheduling.choice import Choice


class StepInFlight:
    """A launched plan and what it still holds."""

    __slots__ = ("choices", "constrained", "held_blocks", "plan")

    def __init__(
        self, plan: StepPlan, choices: list[Choice], held_blocks: list[int], constrained: list[tuple[int, Choice]]
    ) -> None:
        self.plan = plan
        self.choices = choices
        """Parallel to plan.rows."""
        self.held_blocks = held_blocks
        """Sources of the plan's copies, one reference each."""
        self.constrained = constrained
        """(row, choice) of those that the plan samples and that have a grammar."""


class PlanDraft:
    """Collects the deltas of the next plan. Deltas that come between steps (freed rows, blocks that fell behind a window)
    wait here; they are handed out with the first plan that computes something."""

    __slots__ = (
        "_free_rows",
        "_max_rows",
        "choices",
        "constrained",
        "copies",
        "freed_rows",
        "held_blocks",
        "is_short",
        "new_blocks",
        "new_rows",
        "num_tokens",
        "replaced",
        "rows",
        "tokens_left",
    )

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._free_rows = list(range(max_rows))
        self.freed_rows: list[int] = []
        self.replaced: list[tuple[int, int, int, int]] = []
        self.is_short = False
        """Blocks ran out in this step: nothing may be admitted."""
        self.tokens_left = 0
        self._clear()

    def _clear(self) -> None:
        self.copies: list[tuple[int, int]] = []
        self.held_blocks: list[int] = []
        self.new_rows: list[NewRow] = []
        self.rows: list[int] = []
        self.num_tokens: list[int] = []
        self.choices: list[Choice] = []
        self.constrained: list[tuple[int, Choice]] = []
        self.new_blocks: list[tuple[int, int, list[int]]] = []

    def open(self, max_tokens: int) -> None:
        """Begin a step with this token budget."""
        self.tokens_left = max_tokens
        self.is_short = False

    @property
    def num_free_rows(self) -> int:
        """Rows that nothing runs in."""
        return len(self._free_rows)

    @property
    def has_room(self) -> bool:
        """Whether one more choice could enter the batch."""
        return self.tokens_left > 0 and bool(self._free_rows)

    def take_row(self) -> int:
        """The lowest free row."""
        return heapq.heappop(self._free_rows)

    def free_row(self, row: int) -> None:
        """The runner forgets `row` before the next plan's new rows; its pending table changes are void."""
        heapq.heappush(self._free_rows, row)
        self.freed_rows.append(row)
        if self.replaced:
            self.replaced = [change for change in self.replaced if change[0] != row]

    def free_all_rows(self) -> None:
        """The runner forgets everything: after a failed step nobody knows which deltas it carried out."""
        self._clear()
        self.replaced = []
        self._free_rows = list(range(self._max_rows))
        self.freed_rows = list(range(self._max_rows))

    def schedule(self, choice: Choice, count: int) -> None:
        """Compute `count` more tokens of `choice`. If that reaches its last known token, the next one will be sampled."""
        choice.num_planned += count
        if choice.num_planned == choice.num_known:
            choice.num_known += 1
            if choice.matcher is not None:
                self.constrained.append((choice.row, choice))
        self.rows.append(choice.row)
        self.num_tokens.append(count)
        self.choices.append(choice)
        self.tokens_left -= count

    def add_row(self, choice: Choice, table: BlockTable) -> None:
        """The runner sets up `choice`'s row. Copies, because it keeps its own account of tokens and blocks."""
        row = NewRow(
            row=choice.row,
            request_id=choice.request_id,
            token_ids=choice.token_ids.copy(),
            num_prompt_tokens=choice.num_prompt,
            num_computed=choice.num_computed,
            block_ids=[blocks.copy() for blocks in table.block_ids],
            sampling=choice.sampling,
        )
        self.new_rows.append(row)

    def copy_blocks(self, copies: list[tuple[int, int]], pool: BlockPool) -> None:
        """Make these copies before the step; the sources are held until it commits."""
        for source, _ in copies:
            pool.acquire(source)
            self.held_blocks.append(source)
        self.copies += copies

    def close(self, step_id: int) -> StepInFlight:
        """The finished plan. One that computes nothing is empty altogether, and the deltas wait on."""
        is_empty = not self.rows
        plan = StepPlan(
            step_id=step_id,
            freed_rows=[] if is_empty else self.freed_rows,
            copies=self.copies,
            new_rows=self.new_rows,
            rows=self.rows,
            num_tokens=self.num_tokens,
            new_blocks=self.new_blocks,
            replaced_block_ids=[] if is_empty else self.replaced,
            has_masks=bool(self.constrained),
        )
        step = StepInFlight(plan, self.choices, self.held_blocks, self.constrained)
        if not is_empty:
            self.freed_rows, self.replaced = [], []
        self._clear()
        return step

    def check(self, rows_in_use: set[int]) -> None:
        """AssertionError unless every row is either free or in use."""
        assert sorted([*self._free_rows, *rows_in_use]) == list(range(self._max_rows)), "a row is lost or taken twice"
