"""Sends an answer to its client: part by part as it comes, never faster than the client takes it.

It must not know workers: what mends a stream lies behind the answer's parts.
"""

import asyncio
import functools
from typing import Any, Protocol, cast

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter

from quire_contract.error_form import broken_stream
from quire_contract.openai.errors import ApiError
from quire_router.answer import Answer, BrokenStreamError
from quire_router.call import STATUS_CLIENT_GONE, Call, Outcome
from quire_router.idle_guard import NOT_WAITING, IdleGuard
from quire_router.native.library import native
from quire_router.whole_response import WholeResponse


async def deliver(
    request: web.BaseRequest, call: Call, answer: Answer, outcome: Outcome, *, idle_s: float
) -> web.StreamResponse:
    """Send `answer`, which comes in parts, and close it. A client that takes nothing for `idle_s` seconds is cut off."""
    outcome.status = answer.status
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    sent = _Sent()
    try:
        await _send(request, response, answer, sent, idle_s)
    except BrokenStreamError as error:
        outcome.problem = str(error)
        await _end_broken(request, response, call, answer, sent, idle_s, outcome)
    except (TimeoutError, ConnectionError):
        outcome.status, outcome.problem = STATUS_CLIENT_GONE, "the client left or took nothing for too long"
        abort(request)
    finally:
        await answer.close()
    return response


def whole(answer: Answer, outcome: Outcome) -> WholeResponse | None:
    """`answer`, to be sent at once. None: it comes in parts."""
    body = answer.body
    if body is None:
        return None
    outcome.status = status = answer.status
    return WholeResponse(status=status, headers=answer.untouched_headers, body=body)


class EventSink(Protocol):
    """A sink that counts."""

    @property
    def num_events(self) -> int:
        """In what it wrote."""

    def __call__(self, part: bytes) -> bool:
        """As a Sink."""


class _Sent:
    """What the client has."""

    __slots__ = ("num_written", "sink")

    def __init__(self) -> None:
        self.num_written = 0
        """Events in the parts that were awaited."""
        self.sink: EventSink | None = None

    @property
    def num_events(self) -> int:
        """In all."""
        return self.num_written + (0 if self.sink is None else self.sink.num_events)


class _ClientSink:
    """Writes parts of an answer that has begun to the client's connection, without awaiting it."""

    __slots__ = ("_is_chunked", "_protocol", "num_events")

    def __init__(self, protocol: BaseProtocol, is_chunked: bool) -> None:
        self._protocol = protocol
        self._is_chunked = is_chunked
        self.num_events = 0

    def __call__(self, part: bytes) -> bool:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            return False  # who writes the next one finds out
        transport.write(b"%x\r\n%b\r\n" % (len(part), part) if self._is_chunked else part)
        self.num_events += part.count(b"\n\n")
        return not self._protocol.writing_paused


def sink_of(protocol: BaseProtocol, *, is_chunked: bool, parts: Any = None) -> EventSink:
    """A sink that writes to a client's connection. `parts`: the extension module, if it is to be used."""
    made: EventSink = (_ClientSink if parts is None else parts.ClientSink)(protocol, is_chunked)
    return made


async def _send(
    request: web.BaseRequest, response: web.StreamResponse, answer: Answer, sent: _Sent, idle_s: float
) -> None:
    assert answer.parts is not None, "a whole answer is sent otherwise"
    guard = IdleGuard(idle_s, functools.partial(abort, request))
    now, write, is_events = asyncio.get_running_loop().time, response.write, answer.is_events
    try:
        guard.since_s = now()
        await response.prepare(request)
        guard.since_s = NOT_WAITING
        attach = answer.attach
        async for part in answer.parts:
            if part:
                guard.since_s = now()
                await write(part)
                if attach is not None:
                    is_chunked = cast(StreamWriter, request.writer).chunked
                    sent.sink = sink_of(request.protocol, is_chunked=is_chunked, parts=native())
                    attach(sent.sink)
                    attach = None
                if is_events:
                    sent.num_written += part.count(b"\n\n")
            elif request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the client has left")
            if request.protocol.writing_paused:
                guard.since_s = now()
                await request.writer.drain()
            guard.since_s = NOT_WAITING
    finally:
        guard.close()


async def _end_broken(
    request: web.BaseRequest,
    response: web.StreamResponse,
    call: Call,
    answer: Answer,
    sent: _Sent,
    idle_s: float,
    outcome: Outcome,
) -> None:
    """The client gets an error event, never a bare cut that looks like an end."""
    if not answer.is_events:
        abort(request)
        return
    error = ApiError(
        502,
        f"The stream broke: {outcome.problem}. What was sent is incomplete.",
        type="server_error",
        code="stream_broken",
    )
    try:
        async with asyncio.timeout(idle_s):
            await response.write(broken_stream(error, call.path, call.request_id, sent.num_events))
    except (TimeoutError, ConnectionError):
        abort(request)


def abort(request: web.BaseRequest) -> None:
    """Cut the client's connection: it must not take a part for the whole."""
    if request.transport is not None:
        request.transport.abort()
