"""The engine's sleep: when it may begin, and what is done then.

Knows the runner as something that sleeps, and the scheduler's cache; no sockets. Whoever asks sees to it that no request comes
while the engine sleeps.
"""

import logging
import time
from collections.abc import Callable, Iterator

from quire_worker.dormant import Dormant
from quire_worker.engine.messages import SleepChanged
from quire_worker.engine.served import ServedScheduler
from quire_worker.errors import WakeError

log = logging.getLogger(__name__)


class Slumber:
    """Puts one engine to sleep and wakes it."""

    def __init__(
        self, scheduler: ServedScheduler, dormant: Dormant | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """dormant None: it has nothing to give back but the cache."""
        self._scheduler = scheduler
        self._dormant = dormant
        self._clock = clock
        self._asked: bool | None = None
        self.asleep = False

    def ask(self, *, asleep: bool) -> None:
        """Sleep as soon as there is no work, or wake."""
        self._asked = asleep

    def turn(self, show_life: Callable[[], None]) -> SleepChanged | None:
        """Do what was asked if it can be done now; None if there is nothing to tell yet. `show_life` is called every now and then."""
        asleep = self._asked
        if asleep is None or (asleep and self._scheduler.has_work):
            return None
        self._asked = None
        began_s, size_bytes, problem = self._clock(), 0, ""
        if asleep != self.asleep:
            try:
                for piece in self._change(asleep=asleep):
                    size_bytes += piece
                    show_life()
                self.asleep = asleep
            except WakeError as error:
                problem = str(error)
        time_s = self._clock() - began_s
        log.info("sleep changed asleep=%s bytes=%d time_s=%.3f problem=%s", self.asleep, size_bytes, time_s, problem)
        return SleepChanged(asleep=self.asleep, size_bytes=size_bytes, time_s=time_s, problem=problem)

    def _change(self, *, asleep: bool) -> Iterator[int]:
        if asleep:
            self._scheduler.drop_cache()
        if self._dormant is not None:
            yield from self._dormant.fall_asleep() if asleep else self._dormant.wake()
