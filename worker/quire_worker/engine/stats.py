"""Decides when to tell the API process and the routers how the engine is, and collects what they are told.

Pure: the caller gives times.
"""

from collections import deque

from quire_contract.load_report import MAX_INTERVAL_S, MIN_INTERVAL_S
from quire_worker.engine.grammar_desk import GrammarDesk
from quire_worker.engine.messages import Stats
from quire_worker.engine.served import ServedScheduler
from quire_worker.grammar.compiler import GrammarCounters

_MAX_STEPS = 1_000


class StatsCollector:
    """Times of the steps since the last Stats; the rest is the scheduler's."""

    def __init__(self, scheduler: ServedScheduler, num_blocks: int, desk: GrammarDesk | None = None) -> None:
        """`desk`: where grammars are compiled; None: an engine without grammars."""
        self._scheduler = scheduler
        self._desk = desk
        self._grammars = GrammarCounters() if desk is None else desk.counters
        self._num_blocks = num_blocks
        self._steps: deque[tuple[int, float]] = deque(maxlen=_MAX_STEPS)

    def add_step(self, num_tokens: int, time_s: float) -> None:
        """A step took `time_s`."""
        self._steps.append((num_tokens, time_s))

    def take(self, retry_after_s: int = 1) -> Stats:
        """The state now, and what happened since the last call. `retry_after_s` is told as it is."""
        scheduler, counters = self._scheduler, self._scheduler.counters
        stats = Stats(
            num_steps=counters.num_steps,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_free_blocks=scheduler.num_free_blocks,
            num_blocks=self._num_blocks,
            num_preemptions=counters.num_preemptions,
            num_prompt_tokens=counters.num_prompt_tokens,
            num_cached_tokens=counters.num_cached_tokens,
            num_generated_tokens=counters.num_generated_tokens,
            prefix_queries=counters.prefix_queries,
            prefix_hits=counters.prefix_hits,
            queue_time_s=counters.queue_time_s,
            step_tokens=[num_tokens for num_tokens, _ in self._steps],
            step_time_s=[time_s for _, time_s in self._steps],
            num_deferred=scheduler.num_deferred,
            num_preempted_tokens=counters.num_preempted_tokens,
            retry_after_s=retry_after_s,
            num_grammar_hits=self._grammars.num_hits,
            num_grammar_rejections=self._grammars.num_refused,
            grammar_compile_time_s=self._grammars.compile_time_s,
            num_at_desk=0 if self._desk is None else self._desk.num_waiting,
        )
        self._grammars.compile_time_s = []
        counters.queue_time_s = []
        self._steps.clear()
        return stats


class Pace:
    """On change, at most every MIN_INTERVAL_S; without change every MAX_INTERVAL_S, as a heartbeat."""

    def __init__(self) -> None:
        self._sent_s: float | None = None
        self._has_changed = False

    def on_change(self) -> None:
        """Something is worth telling."""
        self._has_changed = True

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next report is due; 0 if it is."""
        if self._sent_s is None:
            return 0.0
        interval = MIN_INTERVAL_S if self._has_changed else MAX_INTERVAL_S
        return max(0.0, self._sent_s + interval - now_s)

    def on_sent(self, now_s: float) -> None:
        """A report went out."""
        self._sent_s = now_s
        self._has_changed = False
