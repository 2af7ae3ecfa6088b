"""One client's connection: aiohttp's parser, buffers and rules, and one task for all of its requests.

    data -> parser -> queue of requests -> the connection's task: handler -> answer -> next of the queue

aiohttp makes one more task for each request, and wakes the first again when that is done. Errors are answered here with our nested JSON
body, also for what never reaches the app, and no line of a client's bytes is logged. Knows nothing of routes.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler

from quire_contract.openai.errors import ApiError, internal
from quire_contract.request_id import new_request_id
from quire_contract.telemetry import log_event
from quire_router.responses import error_response
from quire_router.tiny_chunks import has_tiny_chunks
from quire_router.whole_response import WholeResponse

log = logging.getLogger("quire_router.server")

MAX_UNSENT_BYTES = 128 * 1024
"""What the kernel takes of an answer beyond what is under way to the client."""
LINGERING_S = 10.0
"""For a client to send the rest of a body that nobody wants, so that it reads its answer."""
_VERSIONS = (HttpVersion11, HttpVersion10)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ClientRequest(web.BaseRequest):
    """aiohttp's request. What only few ask of it is made when they do."""

    def __init__(  # as aiohttp's, which also asks the connection for three addresses  # pylint: disable=super-init-not-called
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        loop: asyncio.AbstractEventLoop,
        max_body_bytes: int,
    ) -> None:
        url = message.url
        self._message = message
        self._protocol = protocol
        self._payload = payload
        self._headers = message.headers
        self._method = message.method
        self._version = message.version
        self._cache: dict[str, Any] = {}
        self._rel_url = url.relative() if url.absolute else url
        self._state = {}
        self._task = None  # type: ignore[assignment]  # nobody asks for it
        self._client_max_size = max_body_bytes
        self._loop = loop
        self._writer: StreamWriter | None = None

    async def read(self) -> bytes:
        """The body. A client that waits to be asked for it is asked: it may wait forever."""
        if self._version == HttpVersion11 and not self._payload.is_eof() and self._expects_to_be_asked():
            transport = self._protocol.transport
            if transport is not None:
                transport.write(_CONTINUE)
        return await super().read()

    def _expects_to_be_asked(self) -> bool:
        return self._headers.get(hdrs.EXPECT, "").lower() == "100-continue"

    @property
    def _payload_writer(self) -> StreamWriter:  # type: ignore[override]
        writer = self._writer
        if writer is None:
            writer = self._writer = StreamWriter(self._protocol, self._loop)
        return writer

    @property
    def _transport_peername(self) -> Any:  # type: ignore[override]
        return self._protocol.peername

    @property
    def _transport_sockname(self) -> Any:  # type: ignore[override]
        return self._protocol.sockname

    @property
    def _transport_sslcontext(self) -> Any:  # type: ignore[override]
        return self._protocol.ssl_context


class ClientConnection(RequestHandler):
    """One client's."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client that reads slowly must not fill the kernel's memory either, which counts as the router's."""
        super().connection_made(transport)
        own = transport.get_extra_info("socket")
        if own is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)

    def data_received(self, data: bytes) -> None:
        """A body in tiny chunks is not even parsed. The rest of a head that has begun must come in time."""
        if has_tiny_chunks(data):
            log_event(log, logging.INFO, "bad_http", error="tiny_chunks")
            self.force_close()
            return
        super().data_received(data)
        if self._current_request is None and not self._messages:
            self._manager.heads.expect(self, self.transport)  # type: ignore[union-attr]  # a RouterServer

    def resume_reading(self, *args: Any, **kw: Any) -> None:
        """Called after every read. What was not paused has nothing to resume; finding that out the usual way costs a run of the parser."""
        if self._reading_paused:
            super().resume_reading(*args, **kw)

    async def start(self) -> None:
        """Answer the requests that come, in their order. The connection is closed after the last one that it may carry."""
        goes_on = True
        while goes_on and not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            try:
                goes_on = await self._answer(*self._next_request())
            except asyncio.CancelledError:
                self.force_close()
                raise
            except ConnectionError:
                break
            except Exception as error:  # noqa: BLE001 - the end of one connection only
                self.log_exception("Unhandled exception", exc_info=error)
                self.force_close()
            finally:
                self._note_answered()
            if goes_on and self._messages:  # whoever sends many at once, none of which waits, would keep out all others
                await asyncio.sleep(0)
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _answer(self, request: web.BaseRequest, handler: Handler, payload: StreamReader) -> bool:
        """Whether another request may follow. ConnectionError: no."""
        self._request_in_progress, self._current_request = True, request
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = error
        except Exception as error:  # noqa: BLE001 - it is logged and answered there
            response = self.handle_error(request, 500, error)
        finally:
            self._current_request = None
        if not self._send_whole(request, response):
            _, is_gone = await self.finish_response(request, response, None)
            if is_gone:
                return False
        if self._paused:
            await self._drain_helper()
        self._keepalive = bool(response.keep_alive)
        self._note_answered()
        if not payload.is_eof():
            await self._linger(payload)
        if not self._keepalive or self._close or self._force_close:
            return False
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        return True

    def _next_request(self) -> tuple[web.BaseRequest, Handler, StreamReader]:
        """What has come first, who answers it, and its body."""
        message: Any
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        make, handler = self._request_factory, self._request_handler
        assert make is not None and handler is not None, "its task does not outlive a connection"
        if type(message) is not RawRequestMessage:  # it says what is wrong with what came
            handler, message = self._make_error_handler(message), ERROR
        elif message.version not in _VERSIONS:
            handler, message = _refuse_version, message._replace(version=HttpVersion11)  # of the answer's first line
        nothing: Any = None  # is made in advance
        return make(message, payload, self, nothing, nothing), handler, payload

    def _send_whole(self, request: web.BaseRequest, response: web.StreamResponse) -> bool:
        """Send an answer of the common kind. False: it is another one, or there is nobody to send it to."""
        if type(response) is not WholeResponse or self._upgraded:
            return False
        data, transport = response.encoded(request), self.transport
        if data is None or transport is None or transport.is_closing():
            return False
        transport.write(data)
        return True

    def _note_answered(self) -> None:
        """Whoever shuts down need not wait for it any longer."""
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)

    async def _linger(self, payload: StreamReader) -> None:
        """Read what is left of a request's body, for a while."""
        try:
            async with asyncio.timeout(self._lingering_time):
                while not payload.is_eof() and not self._force_close:
                    await payload.readany()
        except TimeoutError:
            self.close()

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


async def _refuse_version(request: web.BaseRequest) -> web.StreamResponse:
    """The parser takes it and nobody speaks it here: what stands between a client and us may read it otherwise."""
    log_event(log, logging.INFO, "bad_http", remote=request.remote, error="version")
    response = error_response(ApiError(505, "Use HTTP/1.1 or HTTP/1.0.", code="invalid_http"), new_request_id())
    response.force_close()
    return response
