"""Whether this worker lives, and whether it should get requests: the verdicts behind /health and /ready.

Alive is what makes progress: the load reads or computes, the engine steps or idles, the event loop turns. Asked by the event loop and by
the thread that serves the health port; never waits for either.
"""

import threading

from quire_contract.openai.errors import ApiError
from quire_worker.server import errors
from quire_worker.server.engine_client import EngineClient
from quire_worker.server.lifecycle import Lifecycle
from quire_worker.server.load_watch import LoadWatch
from quire_worker.server.pulse import Pulse

_SLOW_LOOP_S = 5.0
"""An event loop that has not turned for so long answers nobody: requests had better go elsewhere."""
_READS_WITHIN_S = 1.0


class Vitals:
    """Looks at the worker's parts; changes none of them."""

    def __init__(
        self, lifecycle: Lifecycle, engine: EngineClient, load_watch: LoadWatch, pulse: Pulse, timeout_s: float
    ) -> None:
        """`timeout_s` is how long engine and event loop may make no progress."""
        self._lifecycle = lifecycle
        self._engine = engine
        self._load_watch = load_watch
        self._pulse = pulse
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    @property
    def phase(self) -> str:
        return self._lifecycle.phase

    def problem(self) -> str | None:
        """Why only a restart helps; None while all is well, loading and draining included."""
        late_s = self._pulse.late_s
        if self._lifecycle.failure is not None:
            return self._lifecycle.failure
        if late_s > self._timeout_s:
            return f"the server's event loop has stood still for {late_s:.0f} s"
        heartbeat = self._engine.heartbeat
        if heartbeat is not None:
            # While the loop is late, what the engine said waits to be read: its silence tells nothing.
            return heartbeat.problem(self._timeout_s) if late_s < _READS_WITHIN_S else None
        if self._lifecycle.phase == "loading":
            with self._lock:  # it remembers what it saw
                return self._load_watch.problem()
        return None

    def refusal(self) -> ApiError | None:
        """Why requests had better go elsewhere: 503 while loading, draining, failed or stuck."""
        match self._lifecycle.phase:
            case "loading":
                return errors.not_ready(f"loading ({self._lifecycle.detail})")
            case "draining":
                return errors.draining()
            case "asleep":
                return errors.asleep()
            case "failed":
                return errors.engine_dead(self._lifecycle.failure or "unknown")
            case "ready":
                late_s = self._pulse.late_s
                return (
                    errors.not_ready(f"its event loop stands still for {late_s:.0f} s")
                    if late_s > _SLOW_LOOP_S
                    else None
                )
