"""aiohttp's protocol for a connection to a worker, which tells at once when more of an answer has come: no task is woken for that.

Knows nothing of answers.
"""

from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler


class WorkerConnection(ResponseHandler):
    """One connection. Used for one answer after another."""

    on_arrival: Callable[[], None] | None = None
    """Called when something came, or the connection was lost, after the answer's reader has been given it. It must not raise."""

    def data_received(self, data: bytes) -> None:
        """The answer may end with this, and the connection be free: who listened until now still hears of it."""
        listener = self.on_arrival
        super().data_received(data)
        if listener is not None:
            listener()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The reader has the end, or the error: also of an answer that broke off in what is no HTTP, of which it would hear nothing."""
        listener, payload = self.on_arrival, self._payload
        super().connection_lost(exc)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("the answer ended in what is no HTTP"))
        if listener is not None:
            listener()

    def resume_reading(self, *args: Any, **kw: Any) -> None:
        """Called after every read. What was not paused has nothing to resume; finding that out the usual way costs a run of the parser."""
        if self._reading_paused:
            super().resume_reading(*args, **kw)


def use_worker_connections(connector: aiohttp.BaseConnector) -> None:
    """Connections that `connector` makes from now on are of this kind."""
    factory = connector._factory

    def make() -> WorkerConnection:
        return WorkerConnection(loop=factory.keywords["loop"])

    connector._factory = make  # type: ignore[assignment]
