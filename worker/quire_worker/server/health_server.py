"""/health, /ready, /metrics and /internal/startup on a port of their own, by a thread with an event loop of its own.

The main port's event loop may be held up (that is what /health has to tell), so the port that probes ask does not depend on it.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from types import TracebackType

from aiohttp import web

from quire_contract import names
from quire_contract.telemetry import log_event
from quire_worker.server.listener import ConnectionLimits, listening
from quire_worker.server.middleware import Edge
from quire_worker.server.probes import Probes

_log = logging.getLogger(__name__)
_LIMITS = ConnectionLimits(header_timeout_s=5.0, keep_alive_timeout_s=15.0, max_connections=256)
_LAST_WORDS_S = 0.2


class HealthServer:
    """Serves while entered."""

    def __init__(self, edge: Edge, probes: Probes, sock: socket.socket) -> None:
        """`sock` is bound already."""
        self._app = web.Application(client_max_size=0)
        edge.install(self._app)
        self._app.add_routes(
            [
                web.get(names.PATH_HEALTH, probes.health),
                web.get(names.PATH_READY, probes.ready),
                web.get(names.PATH_METRICS, probes.metrics),
                web.get(names.PATH_STARTUP, probes.startup),
            ]
        )
        self._sock = sock
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def __enter__(self) -> "HealthServer":
        self._thread.start()
        host, port = self._sock.getsockname()[:2]
        log_event(_log, logging.INFO, "serving probes", host=host, health_port=port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        async with listening(self._app, self._sock, _LIMITS, shutdown_timeout_s=_LAST_WORDS_S):
            await self._stopping.wait()
