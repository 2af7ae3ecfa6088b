"""One client's connection: aiohttp's parser, buffers and rules, and one task for all of its requests.

    data -> parser -> queue of requests -> the connection's task: handler -> answer -> next of the queue
         -> plain request, between two others ----^

aiohttp makes one more task for each request, and wakes the first again when that is done. Errors are answered here with our nested JSON
body, also for what never reaches the app, and no line of a client's bytes is logged. Knows nothing of routes.

A request that is plain, whole and alone (`plain_http`) needs no parser, and its handler runs at once, up to where it waits, within the
call that brought its last byte. Only where the parser holds nothing of another one: that is known of a connection whose requests have all
been plain, as far as their heads go. Others keep to the parser.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, EmptyStreamReader, StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler

from quire_contract.openai.errors import ApiError, internal
from quire_contract.request_id import new_request_id
from quire_contract.telemetry import log_event
from quire_router.plain_http import MAX_HELD_BYTES, PlainHttp
from quire_router.plain_request import PlainRequest
from quire_router.responses import error_response
from quire_router.tiny_chunks import MIN_BYTES, has_tiny_chunks
from quire_router.turn import Turn
from quire_router.whole_response import WholeResponse

log = logging.getLogger("quire_router.server")

MAX_UNSENT_BYTES = 128 * 1024
"""What the kernel takes of an answer beyond what is under way to the client."""
LINGERING_S = 10.0
"""For a client to send the rest of a body that nobody wants, so that it reads its answer."""
_VERSIONS = (HttpVersion11, HttpVersion10)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ClientConnection(RequestHandler):
    """One client's."""

    __slots__ = ("_has_begun", "_held", "_holding", "_idle", "_is_timed", "_missing", "_plain", "max_body_bytes")

    _plain: PlainHttp | None
    _missing: int | None
    """Bytes of a plain head's body that the parser waits for; 0: it holds nothing; None: nobody knows."""
    _has_begun: bool
    """Whether its task runs: what comes first may come before."""
    _held: bytes
    """The beginning of a plain request, for which the parser need not be asked if the rest comes soon."""
    _holding: asyncio.TimerHandle | None
    _idle: Turn[PlainRequest | None] | None
    """What its task waits at for a request of either kind. None: it does not, or at what only the parser ends."""
    _is_timed: bool
    """Whether a head may be expected of it: there may be a timer to end."""
    max_body_bytes: int

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client that reads slowly must not fill the kernel's memory either, which counts as the router's."""
        manager: Any = self._manager  # a RouterServer
        self._plain, self.max_body_bytes = manager.plain, manager.max_body_bytes
        self._missing = None if self._plain is None else 0
        self._has_begun, self._held, self._holding, self._idle, self._is_timed = False, b"", None, None, True
        super().connection_made(transport)
        own = transport.get_extra_info("socket")
        if own is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)

    def connection_lost(self, exc: BaseException | None) -> None:
        """What was held is nobody's."""
        self._let_go()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A body in tiny chunks is not even parsed. The rest of a head that has begun must come in time."""
        if len(data) >= MIN_BYTES and has_tiny_chunks(data):
            log_event(log, logging.INFO, "bad_http", error="tiny_chunks")
            self.force_close()
            return
        missing, held = self._missing, self._held
        if missing is None or not data:
            self._parse(data)
            return
        if missing and not held:
            self._missing = missing - len(data) if missing >= len(data) else None
            self._parse(data)
            return
        turn, found = self._idle, None
        is_free = turn is not None or not self._has_begun
        if is_free and not (self._messages or self._force_close or self._close):
            found = self._plain.read(held + data if held else data)  # type: ignore[union-attr]  # there is one: some are not missing
        if type(found) is not tuple:
            if not self._holds(data, found):
                self._parse(data)
            return
        if held:
            self._let_go()
            self._missing = 0
        if self._is_timed:
            self._is_timed = False
            self._manager.heads.came(self)  # type: ignore[union-attr]  # a RouterServer
        path, headers, body = found
        request = PlainRequest(path, headers, body, self)
        if turn is None:
            self._messages.append((request, EMPTY_PAYLOAD))  # type: ignore[arg-type]  # it needs no other message
        else:
            self._idle = None
            turn.wake(request)

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if self._current_request is None and not self._messages:
            self._is_timed = True
            self._manager.heads.expect(self, self.transport)  # type: ignore[union-attr]  # a RouterServer

    def _holds(self, data: bytes, missing: int | None) -> bool:
        """Whether `data` is kept for what is `missing`, which may come soon."""
        self._missing = missing
        if missing is not None and missing <= MAX_HELD_BYTES:
            self._held += data
            if self._holding is None and self._plain is not None:
                self._holding = self._loop.call_later(self._plain.hold_s, lambda: self._parse(self._let_go()))
            return True
        if self._held:
            self._parse(self._let_go())
        return False

    def _let_go(self) -> bytes:
        """What was held, and is no more."""
        held, self._held = self._held, b""
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        return held

    def resume_reading(self, *args: Any, **kw: Any) -> None:
        """Called after every read. What was not paused has nothing to resume; finding that out the usual way costs a run of the parser."""
        if self._reading_paused:
            super().resume_reading(*args, **kw)

    async def start(self) -> None:
        """Answer the requests that come, in their order. The connection is closed after the last one that it may carry."""
        goes_on = self._has_begun = True
        turn: Any = None
        while goes_on and not self._force_close:
            request: Any = None
            response: Any = None  # nor is the last answer kept while nothing comes
            payload: StreamReader | EmptyStreamReader = EMPTY_PAYLOAD
            if not self._messages:
                if turn is None or self._missing is None:
                    turn = self._new_turn()
                else:
                    turn.begin_anew()
                    self._waiter = self._idle = turn
                request = await turn
                self._waiter = self._idle = None
            handler: Any = self._request_handler
            try:
                if request is None:
                    request, handler, payload = self._next_request()
                self._request_in_progress, self._current_request = True, request
                try:
                    response = await handler(request)
                except Exception as error:  # noqa: BLE001 - it is logged and answered there
                    response = self._answer_to(request, error)
                self._current_request = None
                is_sent = (
                    type(response) is WholeResponse and type(request) is PlainRequest and self._send_plain(response)
                )
                if not is_sent or self._paused or self._close or self._force_close:
                    goes_on = await self._end(request, response, payload, is_sent)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the end of one connection only
                goes_on = self._has_failed(error)
            finally:
                self._request_in_progress, self._current_request = False, None
                if self._handler_waiter is not None:
                    self._note_answered()
            if goes_on and self._messages:  # whoever sends many at once, none of which waits, would keep out all others
                await asyncio.sleep(0)
        self._close_sent()

    def _close_sent(self) -> None:
        """Close the connection as soon as what was written is sent, if it is not closed."""
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    def _answer_to(self, request: web.BaseRequest, error: Exception) -> web.StreamResponse:
        """What the client gets where its handler raised."""
        return error if isinstance(error, web.HTTPException) else self.handle_error(request, 500, error)

    def _has_failed(self, error: BaseException) -> bool:
        """False: no answer could be sent, and no other request may follow. Where not just the client has left, that is news."""
        if isinstance(error, asyncio.CancelledError):
            self.force_close()
            raise error
        if not isinstance(error, ConnectionError):
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()
        return False

    def _new_turn(self) -> Any:
        """What its task waits at: a future, or as much of one as is asked of it."""
        turn: Any
        if self._missing is None or self._plain is None:  # all is the parser's from now on
            self._waiter = turn = self._loop.create_future()
        else:
            turn = self._plain.turn(self._loop)
            self._waiter = self._idle = turn
        return turn

    async def _end(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        payload: StreamReader | EmptyStreamReader,
        is_sent: bool,
    ) -> bool:
        """Send the answer, if that `is_sent` not yet. Whether another request may follow. ConnectionError: no."""
        if not is_sent and not self._send_whole(request, response):
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

    def _next_request(self) -> tuple[web.BaseRequest, Handler, StreamReader | EmptyStreamReader]:
        """What has come first, who answers it, and what may still come of its body."""
        message: Any
        message, payload = self._messages.popleft()
        if type(message) is PlainRequest:
            assert self._request_handler is not None, "its task does not outlive a connection"
            return message, self._request_handler, payload
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

    def _send_plain(self, response: WholeResponse) -> bool:
        """Send the answer to a plain request, after which another one may follow. False: it is not plain, or there is nobody to send it
        to."""
        plain, transport = self._plain, self.transport
        if self._keepalive_handle is None or plain is None or transport is None or self._upgraded:
            return False
        data = response.written(plain)
        if data is None or transport.is_closing():
            return False
        transport.write(data)
        self._keepalive = True
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        return True

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

    async def _linger(self, payload: StreamReader | EmptyStreamReader) -> None:
        """Read what is left of a request's body, for a while."""
        try:
            async with asyncio.timeout(self._lingering_time):
                while not payload.is_eof() and not self._force_close:
                    await payload.readany()
        except TimeoutError:
            self.close()
        manager: Any = self._manager
        if self._missing == 0 and manager is not None:  # what came was no beginning of a head
            manager.heads.came(self)

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
