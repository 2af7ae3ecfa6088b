"""Measures how late the event loop runs what is due: waiting that no request's own timing shows."""

import asyncio
from collections.abc import Callable

INTERVAL_S = 0.5


class LoopLag:
    """Tells `show` the lag in seconds, twice a second."""

    def __init__(self, show: Callable[[float], None]) -> None:
        self._show = show

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._show(max(0.0, loop.time() - due_s))
