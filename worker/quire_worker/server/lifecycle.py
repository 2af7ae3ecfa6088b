"""Whether this worker takes requests, and why not: loading, ready, asleep, draining, failed.

Holds the state and decides what is allowed; it starts and stops nothing.
"""

from collections.abc import Callable
from typing import Literal

Phase = Literal["loading", "ready", "draining", "failed", "asleep"]


class Lifecycle:
    """The worker's phase. `failed` is final; termination cannot be undone, a drain by request can."""

    def __init__(self, on_change: Callable[["Lifecycle"], None] = lambda lifecycle: None) -> None:
        self._on_change = on_change
        self._loaded = False
        self._drain_asked = False
        self._asleep = False
        self.terminating = False
        """SIGTERM came: no more than the drain is left."""
        self.failure: str | None = None
        self.detail = "starting"
        """What a loading worker is doing."""

    @property
    def phase(self) -> Phase:
        if self.failure is not None:
            return "failed"
        if self.terminating or self._drain_asked:
            return "draining"
        if not self._loaded:
            return "loading"
        return "asleep" if self._asleep else "ready"

    def loading(self, detail: str) -> None:
        self.detail = detail
        self._on_change(self)

    def loaded(self) -> None:
        self._loaded = True
        self._on_change(self)

    def set_asleep(self, asleep: bool) -> None:
        """Asleep, or on its way there or back: no requests are taken."""
        self._asleep = asleep
        self._on_change(self)

    def drain(self) -> None:
        self._drain_asked = True
        self._on_change(self)

    def undrain(self) -> bool:
        """Take requests again. False: too late, the worker is terminating."""
        if self.terminating:
            return False
        self._drain_asked = False
        self._on_change(self)
        return True

    def terminate(self) -> None:
        self.terminating = True
        self._on_change(self)

    def fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason
            self._on_change(self)
