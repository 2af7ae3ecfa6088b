"""Shortest job first: who is expected to be done soonest goes first, and long runners give way to short newcomers where that pays.

The theory: serving the shortest remaining job first has the least mean latency of all orders (Schrage, 1968); with estimates for lengths
most of the gain remains (Mitzenmacher, "Scheduling with predictions and the price of misprediction", 2019). For LLMs preemption is not free
(the KV is recomputed), so it has to pay for that, and outputs are not known, so what was generated so far counts (FastServe: Wu et al.,
2023, https://arxiv.org/abs/2305.05920).
Rank is a virtual arrival time, see policy.py: nobody is overtaken by what came more than `aging_s` later.

Knows blocks, lengths and speeds; not rows, plans or text.
"""

from collections.abc import Callable, Sequence

from quire_worker.kv.block_manager import BlockManager
from quire_worker.scheduling.choice import Choice, Rank
from quire_worker.scheduling.output_lengths import OutputLengths
from quire_worker.scheduling.speeds import StepSpeeds

MAX_PREEMPTIONS = 2
"""Times a choice gives way to shorter ones; after that it runs until it ends or blocks run out."""
_MUST_PAY = 2.0
"""A long runner gives way only if it would have gone on for so many times what that costs: the newcomer's work, and its own done again
while all others wait."""
_LOOK_EVERY_S = 0.02
"""Looking costs a prediction for each running choice."""
_GUESSED_PREFILL_TOKENS_PER_S = 4000.0
_GUESSED_DECODE_STEP_S = 0.02
"""Until steps were measured; only their ratio counts then."""
_SMOOTHING = 0.05
_COME_BEFORE = 30
"""Times the queue of now that is served before the turn of a victim comes: by far most overtake it who come while it waits (measured)."""


class ShortestFirst:
    """By expected remaining work, bounded by age."""

    def __init__(self, kv: BlockManager, speeds: StepSpeeds, clock: Callable[[], float], aging_s: float) -> None:
        """`clock` as the scheduler's. `aging_s`: a choice is overtaken only by those that come within so many seconds after it."""
        self._kv = kv
        self._speeds = speeds
        self._clock = clock
        self._aging_s = aging_s
        self._lengths = OutputLengths()
        self._typical_s = 0.0
        """Smoothed work of those that came; halves the handicap's range."""
        self._mean_tokens = 0.0
        """Prompt and output of those that ended lately."""
        self._looked_s: float | None = None

    def rank(self, choice: Choice) -> Rank:
        work_s = self.work_s(choice)
        if not choice.was_admitted:
            self._typical_s += (work_s - self._typical_s) * (_SMOOTHING if self._typical_s else 1.0)
        return self._rank(choice, work_s)

    def _rank(self, choice: Choice, work_s: float) -> Rank:
        """The handicap grows with the work from 0 towards aging_s: half of it for a typical choice, and steepest there."""
        squared = work_s * work_s
        return (choice.arrived_s + self._aging_s * squared / (squared + self._typical_s**2), *choice.age)

    def work_s(self, choice: Choice) -> float:
        """Seconds of prefill and decode steps that `choice` still needs, as far as can be told."""
        generated = len(choice.token_ids) - choice.num_prompt
        at_most = choice.max_total - len(choice.token_ids)
        more = self._lengths.expected_more(generated, at_most) if choice.ending else float(at_most)
        return self._prefill_s(self._num_uncomputed(choice)) + more * (
            self._speeds.decode_step_s or _GUESSED_DECODE_STEP_S
        )

    def victims(
        self, head: Choice, running: Sequence[Choice], num_free_rows: int, num_waiting: int
    ) -> Sequence[Choice]:
        """The longest runners, as few as make room for `head`: nobody unless they suffice, and it pays, and none is due before `head`."""
        now_s = self._clock()
        if self._looked_s is not None and now_s - self._looked_s < _LOOK_EVERY_S:
            return ()
        num_blocks = self._num_blocks_short(head)
        if num_free_rows and num_blocks <= 0:
            return ()
        self._looked_s = now_s
        is_lost = num_blocks > 0 or not self._keeps_for(num_waiting)
        return self._choose(head, running, 0 if num_free_rows else 1, num_blocks, is_lost=is_lost)

    def _choose(
        self, head: Choice, running: Sequence[Choice], num_rows: int, num_blocks: int, *, is_lost: bool
    ) -> list[Choice]:
        """`is_lost`: what victims computed will have to be computed again, and prefill keeps the whole batch waiting."""
        head_s = self.work_s(head)
        works = sorted(((self.work_s(choice), choice.age, choice) for choice in running), reverse=True)
        victims: list[Choice] = []
        for work_s, _, choice in works:
            if len(victims) >= num_rows and num_blocks <= 0:
                return victims
            redo_s = self._prefill_s(choice.num_computed) * len(running) if is_lost else 0.0
            cost_s = head_s + redo_s
            if work_s < _MUST_PAY * cost_s:
                return []  # nor would the rest pay: they are shorter
            if (
                choice.num_given_way < MAX_PREEMPTIONS
                and not choice.siblings
                and self._rank(choice, work_s) > head.rank
            ):
                assert choice.table is not None
                victims.append(choice)
                num_blocks -= self._kv.num_exclusive(choice.table)
        return victims if len(victims) >= num_rows and num_blocks <= 0 else []

    def on_end(self, choice: Choice, *, of_itself: bool) -> None:
        generated = len(choice.token_ids) - choice.num_prompt
        if generated > 0:
            self._mean_tokens += (len(choice.token_ids) - self._mean_tokens) * (
                _SMOOTHING if self._mean_tokens else 1.0
            )
        if generated > 0 and choice.ending:
            self._lengths.observe(generated, of_itself=of_itself)

    def _num_uncomputed(self, choice: Choice) -> int:
        if choice.table is not None:
            return max(0, len(choice.token_ids) - choice.num_computed)
        return choice.num_known - self._kv.match_prefix(choice.chain, choice.num_readable).num_tokens

    def _num_blocks_short(self, head: Choice) -> int:
        found = self._kv.match_prefix(head.chain, head.num_readable).num_tokens
        return self._kv.num_blocks_for(head.num_known - found) - self._kv.pool.num_free

    def _keeps_for(self, num_waiting: int) -> bool:
        """Whether the cache will likely still have a victim's blocks when its turn comes."""
        num_tokens = _COME_BEFORE * num_waiting * self._mean_tokens
        return self._kv.keeps_blocks and self._kv.num_blocks_for(int(num_tokens)) < self._kv.pool.num_free

    def _prefill_s(self, num_tokens: int) -> float:
        return num_tokens / (self._speeds.prefill_tokens_per_s or _GUESSED_PREFILL_TOKENS_PER_S)
