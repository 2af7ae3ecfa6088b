"""Whether a loading worker gets anywhere, however long it takes: what its process has read and computed so far.

A slow load (a large model, a slow disk) keeps reading or computing; a hung one (a dead network volume, a deadlock) does neither.
Looks at the kernel's counters, so that nothing in the load need report. Must not know what is loaded. A loop that computes for
ever counts as progress.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_MIN_READ_BYTES_PER_S = 64 * 1024
_MIN_CPU_SHARE = 0.05
_MIN_WINDOW_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a process has done since it began."""

    read_bytes: int
    cpu_s: float


def work_of(pid: int, proc: Path = Path("/proc")) -> Work | None:
    """The work of one process; None if the system does not tell."""
    try:
        io = dict(line.split(": ", 1) for line in (proc / str(pid) / "io").read_text("ascii").splitlines())
        # The name in parentheses may hold spaces; utime and stime are fields 14 and 15, in ticks.
        fields = (proc / str(pid) / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        # rchar counts what is read from the page cache too; read_bytes what page faults on a mapped file read from disk.
        return Work(read_bytes=int(io["rchar"]) + int(io["read_bytes"]), cpu_s=ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, KeyError, IndexError):
        return None


class LoadWatch:
    """Asked at every probe; progress is judged between two askings."""

    def __init__(self, timeout_s: float, clock: Callable[[], float]) -> None:
        """`timeout_s` is how long a load may stand still."""
        self._timeout_s = timeout_s
        self._clock = clock
        self._progressed_s = self._seen_s = clock()
        self._seen: Work | None = None
        self._look: Callable[[], Work | None] = lambda: None

    def begin(self, look: Callable[[], Work | None]) -> None:
        """The load begins now; `look` tells what it has done. Where it cannot tell, `timeout_s` bounds the whole load."""
        self._look = look
        self._progressed_s = self._seen_s = self._clock()
        self._seen = look()

    def problem(self) -> str | None:
        """What is wrong if the load has stood still for longer than `timeout_s`."""
        now, work = self._clock(), self._look()
        window_s = now - self._seen_s
        if window_s >= _MIN_WINDOW_S:
            if work is not None and self._seen is not None and _moved(self._seen, work, window_s):
                self._progressed_s = now
            self._seen, self._seen_s = work, now
        still_s = now - self._progressed_s
        return f"the load has made no progress for {still_s:.0f} s" if still_s > self._timeout_s else None


def _moved(before: Work, after: Work, window_s: float) -> bool:
    """More than what idle threads do."""
    read_bytes, cpu_s = after.read_bytes - before.read_bytes, after.cpu_s - before.cpu_s
    return read_bytes >= _MIN_READ_BYTES_PER_S * window_s or cpu_s >= _MIN_CPU_SHARE * window_s
