"""Why the process ended, where Kubernetes reads it: the container's termination message.

Only the API process writes it. It is the container's first process, and learns from the engine process, or from how that one ended, why.
"""

import contextlib
import os
from pathlib import Path

_MAX_BYTES = 4096
"""The kubelet reads no more."""


class LastWords:
    """Writes one reason, the first that is given: what comes later is a consequence."""

    def __init__(self, path: Path | None) -> None:
        """`path` is a file that exists and may be written to; else nothing is written. None: likewise."""
        self._path = path
        self.reason: str | None = None

    def write(self, reason: str) -> None:
        """Never raises: whoever calls this is about to end for a better reason. From any thread."""
        if self.reason is not None:
            return
        self.reason = reason
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            # Never created, never through a link: in a container the runtime has mounted the file.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(descriptor, reason.encode("utf-8", "replace")[:_MAX_BYTES])
            finally:
                os.close(descriptor)
