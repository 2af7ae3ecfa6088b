"""aiohttp's server with our errors: a nested JSON body also for what never reaches the app, and no line of a client's bytes in the log.

Knows nothing of routes.
"""

import asyncio
import logging
import socket
from typing import Any, cast

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.web_protocol import RequestHandler

from quire_contract.openai.errors import ApiError, internal
from quire_contract.request_id import new_request_id
from quire_contract.telemetry import log_event
from quire_router.head_watch import KEEP_ALIVE_S, HeadWatch
from quire_router.responses import error_response
from quire_router.tiny_chunks import has_tiny_chunks

log = logging.getLogger("quire_router.server")

MAX_UNSENT_BYTES = 128 * 1024
"""What the kernel takes of an answer beyond what is under way to the client."""
_VERSIONS = (HttpVersion11, HttpVersion10)


class NestedErrorHandler(RequestHandler):
    """One client connection."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client that reads slowly must not fill the kernel's memory either, which counts as the router's."""
        super().connection_made(transport)
        own = transport.get_extra_info("socket")
        if own is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)

    def data_received(self, data: bytes) -> None:
        """A body in tiny chunks is not even parsed."""
        if has_tiny_chunks(data):
            log_event(log, logging.INFO, "bad_http", error="tiny_chunks")
            self.force_close()
            return
        super().data_received(data)
        if self._current_request is None and not self._messages:
            cast(RouterServer, self._manager).heads.expect(self, self.transport)

    def resume_reading(self, *args: Any, **kw: Any) -> None:
        """Called after every read. What was not paused has nothing to resume; finding that out the usual way costs a run of the parser."""
        if self._reading_paused:
            super().resume_reading(*args, **kw)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer bytes that are no HTTP, and failures that nothing else caught; then close."""
        request_id = new_request_id()
        if status >= 500:
            log.error("request %s failed", request_id, exc_info=exc)
            error = internal()
        else:
            log_event(log, logging.INFO, "bad_http", remote=request.remote, error=type(exc).__name__)
            error = ApiError(status, "The request is not valid HTTP.", code="invalid_http")
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer was sent already")
        request.writer.chunked = False  # type: ignore[attr-defined]  # set for an answer that failed before a byte of it
        response = error_response(error, request_id)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What aiohttp cannot handle; a rest of a body that turned out to be broken after the answer is the client's doing."""
        error = kw.get("exc_info")
        if isinstance(error, web.RequestPayloadError):
            log_event(log, logging.INFO, "bad_http", error=type(error).__name__)
        else:
            super().log_exception(*args, **kw)


class _OtherVersion(web.BaseRequest):
    """Of a version that the parser takes and nobody speaks here: what stands between a client and us may read it otherwise."""


class RouterServer(web.Server):
    """Makes a NestedErrorHandler for each connection. `max_body_bytes` bounds what `request.read` takes."""

    def __init__(self, handler: Any, *, max_body_bytes: int, heads: HeadWatch | None = None) -> None:
        super().__init__(self._handle, request_factory=self._request, handler_cancellation=True)
        self.heads = HeadWatch() if heads is None else heads
        self._answer = handler
        self._max_body_bytes = max_body_bytes
        self._own_loop = asyncio.get_running_loop()

    def __call__(self) -> RequestHandler:
        """A new connection."""
        return NestedErrorHandler(
            self,
            loop=self._own_loop,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
            keepalive_timeout=KEEP_ALIVE_S,
        )

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Told by each connection."""
        super().connection_made(handler, transport)
        self.heads.begin(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """As above."""
        self.heads.end(handler)
        super().connection_lost(handler, exc)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if type(request) is not _OtherVersion:
            return await self._answer(request)  # type: ignore[no-any-return]
        log_event(log, logging.INFO, "bad_http", remote=request.remote, error="version")
        error = ApiError(505, "Use HTTP/1.1 or HTTP/1.0.", code="invalid_http")
        response = error_response(error, new_request_id())
        response.force_close()
        return response

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        self.heads.came(protocol)
        kind = web.BaseRequest
        if message.version not in _VERSIONS:
            kind, message = _OtherVersion, message._replace(version=HttpVersion11)  # of the answer's first line
        return kind(message, payload, protocol, writer, task, self._own_loop, client_max_size=self._max_body_bytes)
