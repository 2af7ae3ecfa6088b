"""How this worker started: how long each part took. Written by the event loop, read by the health port's thread too.

Knows no route. Times are of CLOCK_MONOTONIC, which all processes of a machine share, so the engine's and ours compare.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from quire_contract.startup_report import SleepState, StartupReport
from quire_worker.plan import ModelInfo


def process_age_s(proc: Path = Path("/proc/self/stat")) -> float:
    """How long ago this process began, to a hundredth; 0.0 if the system does not tell."""
    try:
        # The name in parentheses may hold spaces; starttime is field 22, in ticks since the machine's start.
        fields = proc.read_text("ascii", "replace").rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_s)
    except (OSError, ValueError, IndexError):
        return 0.0


class Startup:
    """Collects the parts of one start."""

    def __init__(
        self,
        pod: str,
        model: str,
        clock: Callable[[], float],
        *,
        age_s: float,
        first_token_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`age_s` is how old the process is now; `first_token_s` tells how long the first request's first token took."""
        self._pod = pod
        self._model = model
        self._clock = clock
        self._began_s = clock() - age_s
        self._ready_s: float | None = None
        self._weights_bytes = 0
        self._parts_s: tuple[float, float, float] | None = None
        self._first_token_s = first_token_s
        self.sleep: SleepState = "awake"
        self.num_wakes = 0
        self.last_wake_s: float | None = None
        self.last_sleep_s: float | None = None
        self.detail_s: dict[str, float] = {}

    @property
    def elapsed_s(self) -> float:
        """Since the process began."""
        return self._clock() - self._began_s

    def on_ready(self, info: ModelInfo, tokenizer_s: float) -> None:
        """The worker takes requests from now on. `tokenizer_s`: how long that took, beside the rest."""
        total_s = self.elapsed_s
        weights_s = info.phases_s.get("weights", 0.0)
        rest_s = sum(info.phases_s.get(name, 0.0) for name in ("profile", "kv_cache", "warm_up"))
        before_s = (
            total_s - weights_s - rest_s if info.weights_began_s is None else info.weights_began_s - self._began_s
        )
        process_s = min(max(0.0, before_s), max(0.0, total_s - weights_s))
        self._parts_s = (process_s, weights_s, max(0.0, total_s - process_s - weights_s))
        self._weights_bytes = info.weights_read_bytes
        self.detail_s = {**info.phases_s, "tokenizer": tokenizer_s}
        self._ready_s = total_s

    @property
    def phases_s(self) -> dict[str, float]:
        """Seconds by name, for a metric and a log line; empty before the worker is ready."""
        if self._parts_s is None or self._ready_s is None:
            return {}
        process_s, weights_s, engine_s = self._parts_s
        return {**self.detail_s, "process": process_s, "weights": weights_s, "engine": engine_s, "total": self._ready_s}

    def report(self, phase: str) -> StartupReport:
        """What is known so far."""
        parts = self._parts_s or (None, None, None)
        weights_s = parts[1] or 0.0
        return StartupReport(
            pod=self._pod,
            model=self._model,
            phase=phase,
            elapsed_s=_short(self.elapsed_s),
            process_s=_optional(parts[0]),
            weights_s=_optional(parts[1]),
            engine_s=_optional(parts[2]),
            ready_s=_optional(self._ready_s),
            weights_bytes=self._weights_bytes,
            weights_bytes_per_s=round(self._weights_bytes / weights_s) if weights_s else 0.0,
            first_token_s=_optional(self._first_token_s()),
            detail_s={name: _short(seconds) for name, seconds in self.detail_s.items()},
            sleep=self.sleep,
            num_wakes=self.num_wakes,
            last_wake_s=_optional(self.last_wake_s),
            last_sleep_s=_optional(self.last_sleep_s),
        )


def _short(seconds: float) -> float:
    return round(seconds, 4)


def _optional(seconds: float | None) -> float | None:
    return None if seconds is None else _short(seconds)
