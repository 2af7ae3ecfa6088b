"""The two clocks of a process, for parts that need both. Tests give their own."""

import time
from collections.abc import Callable

import msgspec


class Clocks(msgspec.Struct, frozen=True, kw_only=True):
    """Both in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    """Unix time: routers must agree on an answer's age."""
