"""Calls back when files have changed, as Secrets do that are mounted into a container. Knows nothing of what they hold."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

_INTERVAL_S = 2.0


async def watch_files(paths: Sequence[Path], on_change: Callable[[], None], interval_s: float = _INTERVAL_S) -> None:
    """For ever. Links are followed: a mounted Secret changes by where its links lead."""
    seen = await asyncio.to_thread(_fingerprints, paths)
    while True:
        await asyncio.sleep(interval_s)
        now = await asyncio.to_thread(_fingerprints, paths)
        if now != seen:
            seen = now
            on_change()


def _fingerprints(paths: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    return [_fingerprint(path) for path in paths]


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
