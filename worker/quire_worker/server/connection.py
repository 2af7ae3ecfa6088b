"""A client's connection, with our answers to what never reaches a handler, and our limits on who says nothing.

Knows nothing of routes.
"""

import asyncio
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from quire_contract.openai.errors import ApiError, internal, unavailable
from quire_worker.server.middleware import SERVER_NAME, error_response

CODE_INVALID_HTTP = "invalid_http"
CODE_TOO_MANY_CONNECTIONS = "too_many_connections"
_MAX_HEADERS = 100
"""Gateways and meshes add dozens; line and field sizes are aiohttp's 8190 bytes."""


class ConnectionCount:
    """Connections of one server, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[Connection, None] = {}
        """That whose last request is longest ago comes first."""

    def admit(self, connection: "Connection") -> bool:
        """Whether there is room: where all are taken, the one that has asked for nothing for longest makes some."""
        if len(self._open) >= self._limit:
            idle = next((other for other in self._open if other.is_idle), None)
            if idle is None:
                return False
            self.leave(idle)
            idle.force_close()
        self._open[connection] = None
        return True

    def asks(self, connection: "Connection") -> None:
        """It has sent a request, or part of its body."""
        if self._open.pop(connection, self) is None:
            self._open[connection] = None

    def leave(self, connection: "Connection") -> None:
        """It counts no more, if it did."""
        self._open.pop(connection, None)


class Connection(RequestHandler):
    """aiohttp's, but bytes that are no HTTP get the nested error body, too, and bodies stay packed (see body.py).

    aiohttp waits for the rest of a request's head for as long as for the next request, and for ever for the first; here the first head must
    come, and a head that has begun must end, soon."""

    __slots__ = (
        "_count",
        "_head_timer",
        "_header_timeout_s",
        "_send_timeout_s",
        "_send_timer",
        "body_timeout_s",
    )

    def __init__(
        self,
        server: web.Server,
        count: ConnectionCount,
        *,
        loop: asyncio.AbstractEventLoop,
        header_timeout_s: float,
        body_timeout_s: float | None,
        send_timeout_s: float,
        **options: Any,
    ) -> None:
        """`options` are aiohttp's."""
        super().__init__(server, loop=loop, auto_decompress=False, max_headers=_MAX_HEADERS, **options)
        self._count = count
        self._header_timeout_s = header_timeout_s
        self.body_timeout_s = body_timeout_s
        """For whoever reads a body; None: as long as it takes."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timeout_s = send_timeout_s
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """No request is being answered, nor the head of one complete."""
        return not self._messages and not self._request_in_progress

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or say that there are too many."""
        is_taken = self._count.admit(self)
        super().connection_made(transport)
        self._start_timer()
        if not is_taken:
            cast(asyncio.WriteTransport, transport).write(_too_many())
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        self._stop_send_timer()
        self._count.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes that do not end a request's head start the time for the rest of it."""
        super().data_received(data)
        if not self.is_idle:
            self._stop_timer()
            self._count.asks(self)
        else:
            self._start_timer()

    def pause_writing(self) -> None:
        """The client takes nothing, and our buffer is full."""
        super().pause_writing()
        if self._send_timer is None and self._send_timeout_s > 0:
            self._send_timer = self._loop.call_later(self._send_timeout_s, self._cut_off)

    def resume_writing(self) -> None:
        self._stop_send_timer()
        super().resume_writing()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _cut_off(self) -> None:
        """Not closed but aborted: what waits to be sent would keep it open."""
        self._send_timer = None
        if self.transport is not None:
            self.transport.abort()

    def _start_timer(self) -> None:
        """Unless it runs. Bytes may come before aiohttp's own task has begun to wait for them."""
        if self._head_timer is None and self._header_timeout_s > 0:
            self._head_timer = self._loop.call_later(self._header_timeout_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.is_idle:
            self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """What aiohttp refuses before any middleware (an unknown Expect, above all) in the nested form, too."""
        if isinstance(resp, web.HTTPException):
            resp = _plain(ApiError(resp.status, f"{resp.reason}."))
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to broken HTTP, or to a failure that nothing else caught; then the connection closes."""
        super().handle_error(request, status, exc, message)  # logs, and raises if part of an answer is out already
        error = internal() if status >= web.HTTPInternalServerError.status_code else _invalid_http(status, message)
        return _plain(error)


def _plain(error: ApiError) -> web.Response:
    """The last answer on a connection."""
    response = error_response(error)
    response.headers["Server"] = SERVER_NAME
    response.force_close()
    return response


def _too_many() -> bytes:
    body = unavailable("This worker has too many connections; try again.", CODE_TOO_MANY_CONNECTIONS).body()
    head = f"HTTP/1.1 503 Service Unavailable\r\nServer: {SERVER_NAME}\r\nContent-Type: application/json\r\n"
    return f"{head}Retry-After: 1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _invalid_http(status: int, message: str | None) -> ApiError:
    """Of the parser's words only what comes before the first colon: behind it stands what the client sent."""
    reason = (message or "").partition(":")[0].strip()
    return ApiError(status, f"The request is not valid HTTP: {reason or 'it cannot be read'}.", code=CODE_INVALID_HTTP)
