"""What the engine needs of whoever can give a device's memory back for a while. Shared by the engine and execution; no torch.

    awake ── fall_asleep() ──> asleep: weights in the host's memory, no KV ── wake() ──> awake, as before

Both come in pieces, so that whoever drives them can show that it lives.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable


@runtime_checkable
class Dormant(Protocol):
    """A runner or embedder that can sleep. It computes nothing between `fall_asleep` and the end of `wake`."""

    def fall_asleep(self) -> Iterator[int]:
        """Give back what is dear; yields the bytes given back with each piece. Nothing may be in flight."""
        ...

    def wake(self) -> Iterator[int]:
        """Take it again; yields bytes likewise. Raises WakeError, and sleeps on, if there is no room."""
        ...
