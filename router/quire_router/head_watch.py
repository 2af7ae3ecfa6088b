"""Bounds what clients cost that ask for nothing: connections that send no whole request head in time are closed, and too many refused.

Knows no requests. Bodies have a time limit of their own, and so has a client that takes nothing.
"""

import asyncio
import logging
from typing import cast

from quire_contract.telemetry import Trouble, log_event
from quire_router.open_files import files_for_clients

log = logging.getLogger("quire_router.server")

HEAD_S = 30.0
"""From a connection's beginning, or a later request's first bytes, to the end of the head."""
KEEP_ALIVE_S = 620.0
"""Of a connection that is kept between requests: longer than load balancers keep theirs (600 s), or they would send into a closing one."""
MAX_CONNECTIONS = 20_000
"""More would cost the process hundreds of MiB, and its streams their lives; what has begun goes on. Fewer where fewer files may be open."""


class HeadWatch:
    """Of one server. One timer a connection, and none a request."""

    def __init__(self, limit_s: float = HEAD_S, max_connections: int | None = None) -> None:
        self._limit_s = limit_s
        self._max_connections = max_connections or min(MAX_CONNECTIONS, files_for_clients())
        self._num_connections = 0
        self._timers: dict[object, asyncio.TimerHandle] = {}
        self._trouble = Trouble()

    def begin(self, connection: object, transport: asyncio.Transport) -> None:
        """A connection is there."""
        self._num_connections += 1
        if self._num_connections > self._max_connections:
            if self._trouble.is_news("connections"):
                log_event(log, logging.WARNING, "too_many_connections", most=self._max_connections)
            transport.abort()
            return
        self.expect(connection, transport)

    def expect(self, connection: object, transport: asyncio.BaseTransport | None) -> None:
        """A head has to come in time: of a connection that has begun, or of which a part is there. Further calls do nothing."""
        if connection not in self._timers and transport is not None:
            abort = cast(asyncio.Transport, transport).abort  # uvloop's is one without being derived from it
            self._timers[connection] = asyncio.get_running_loop().call_later(self._limit_s, abort)

    def came(self, connection: object) -> None:
        """Its head is there. Further calls do nothing."""
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def end(self, connection: object) -> None:
        """It is gone."""
        self._num_connections -= 1
        self.came(connection)
