"""Whether a call may go to a worker without waiting: there is room, and nobody waits for it. In Python, or for the usual call in C++
where that is there. Both decide the same, and note the same (tests/router/test_passing.py)."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from quire_contract.load_report import LOST_AFTER_S, LoadReport
from quire_contract.router_config import EndpointEntry
from quire_contract.router_settings import AdmissionSettings
from quire_contract.telemetry import log_event
from quire_router.call import Call
from quire_router.ejection import Health
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.latency import SlidingHistogram
from quire_router.line import LIGHT_PATHS, Line
from quire_router.lines import Lines
from quire_router.meters import WINDOW_S, Arrivals
from quire_router.reach import Reach

log = logging.getLogger("quire_router.passing")

CLASSES = (Call, Line, Arrivals, SlidingHistogram, Endpoint, Health, EndpointEntry, LoadReport)
"""Whose fields the C++ reads and writes."""
_MOST_IN_FLIGHT = 2**53
"""A larger limit is none, and C++ could not hold it."""


class Passing:
    """One for the process."""

    def __init__(self, lines: Lines, reach: Reach, clock: Callable[[], float], parts: Any = None) -> None:
        """`parts`: the extension module (`native`), if it is to be used."""
        self._lines = lines
        self._reach = reach
        self._clock = clock
        self._rules = AdmissionSettings()
        self._usual: Any = None
        self.target_of: Callable[[Call], str | None] = self._target_of
        """The target at which a call may start now. None: it has to wait. Who passes takes its place before awaiting anything."""
        if parts is not None:
            try:
                self._usual = parts.Passing(clock, self._target_of, LIGHT_PATHS, CLASSES, WINDOW_S, LOST_AFTER_S)
            except (
                TypeError,
                AttributeError,
            ) as error:  # another Python, or msgspec, than is known: fields lie elsewhere
                log_event(log, logging.WARNING, "native_passing", used=False, why=str(error))
            else:
                self.target_of = self._usual.target_of

    def apply(self, rules: AdmissionSettings, pool: EndpointPool, models: Iterable[str]) -> None:
        """The pool and the lines have a new configuration, of these models."""
        self._rules = rules
        if self._usual is not None:
            served = {model: pool.served(model) for model in models}
            ways = {
                model: (self._lines.of(model), one.endpoints) for model, one in served.items() if one.weights is None
            }
            self._usual.apply(ways, min(rules.in_flight_per_worker, _MOST_IN_FLIGHT), rules.kv_use_limit)

    def _target_of(self, call: Call) -> str | None:
        now_s, targets = self._clock(), call.targets
        first = self._lines.of(targets[0])
        first.arrivals.note(now_s)
        for target in self._reach.eligible(call):
            line = first if target == targets[0] else self._lines.of(target)
            if call.path in LIGHT_PATHS:
                if self._reach.is_usable(target):
                    return target
            elif target in line.models or line.granted:
                continue
            elif self._reach.has_room(line, target, self._rules, now_s):
                line.waits.note(0.0, now_s)
                return target
        return None
