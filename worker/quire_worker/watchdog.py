"""Ends a process that hangs, and shows where: all threads' stacks on standard error, then a non-zero exit code.

Two timers. A thread looks for progress and can still tell others why it ends the process. Should it not get the interpreter lock, because a
call into C hangs without letting go of it, a timer of the C library fires that needs no lock (`faulthandler.dump_traceback_later`).
Stacks name files, lines and functions; never values. Knows nothing of engines and servers.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from quire_contract.telemetry import log_event

HUNG_EXIT_CODE = 4
_STDERR = 2
_LOCKED_MARGIN_S = 5.0
"""How much longer than the timeout the thread may be kept from the interpreter lock."""
_LAST_WORDS_S = 5
"""Writing stacks into a pipe that nobody reads never ends."""
_MAX_TICK_S = 1.0

_log = logging.getLogger(__name__)


def show_stacks_on_crash() -> None:
    """SIGSEGV, SIGABRT and their kind write all threads' stacks to standard error. Called by __main__."""
    faulthandler.enable(file=_STDERR, all_threads=True)


class Watchdog:
    """A thread, while entered. Once a process; `timeout_s` 0 starts none."""

    def __init__(
        self,
        progress: Callable[[], object],
        timeout_s: float,
        *,
        what: str,
        on_hang: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`progress` returns another value after each progress, and is called in the thread; `what` hangs, for people.

        `on_hang` is told the reason before the process ends."""
        self._progress = progress
        self._timeout_s = timeout_s
        self._what = what
        self._on_hang = on_hang
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._timeout_s > 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        tick_s = min(_MAX_TICK_S, self._timeout_s / 10)
        seen, still_s, looked_s = self._progress(), 0.0, time.monotonic()
        try:
            while not self._stopped.wait(tick_s):
                faulthandler.dump_traceback_later(self._timeout_s + _LOCKED_MARGIN_S, exit=True, file=_STDERR)
                now_s, mark = time.monotonic(), self._progress()
                # A process that was stopped, or a machine that slept, has not hung: a tick counts for two at most.
                still_s = 0.0 if mark != seen else still_s + min(now_s - looked_s, 2 * tick_s)
                seen, looked_s = mark, now_s
                if still_s >= self._timeout_s:
                    self._end(f"{self._what} for {still_s:.0f} s; the log has the stacks of all threads")
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _end(self, reason: str) -> None:
        signal.alarm(_LAST_WORDS_S)
        with contextlib.suppress(Exception):  # whatever fails here, the process ends
            self._on_hang(reason)
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        log_event(_log, logging.CRITICAL, "watchdog ends the process", reason=reason)
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        # Not sys.exit: the main thread is the one that hangs.
        os._exit(HUNG_EXIT_CODE)
