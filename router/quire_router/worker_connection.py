"""A connection to a worker: aiohttp's protocol and parser, which gives its owner one answer after another without a queue between them.

    ask -> head -> parts of the body -> end -> free -> ask ...

It has an owner (`worker_client`) or belongs to a session of aiohttp; then it is what aiohttp made of it. It tells at once when more of an
answer has come: no task is woken for that. Knows nothing of what answers say.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from multidict import CIMultiDictProxy

from quire_router.connections import READ_BUFFER_BYTES


class WorkerResponse:
    """An answer whose head has come. The part of aiohttp's response that the proxy uses."""

    __slots__ = ("connection", "content", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: CIMultiDictProxy[str],
        content: aiohttp.StreamReader,
        connection: "WorkerConnection | None",
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        """The body as it comes. At its end the connection is free for the next request."""
        self.connection = connection
        """From which more of it comes. Only that ends this."""

    def on_arrival(self, listener: Callable[[], None] | None) -> None:
        """`listener` is called whenever there is more in `content`, its end or an error included, until another one or None is set."""
        if self.connection is not None:
            self.connection.on_arrival = listener

    def close(self) -> None:
        """The connection is cut, unless all of the body has come; whoever waits for more gets a ClientConnectionError."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if self.content.exception() is None:  # a connection that is closed here forgets its readers
            self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
        connection.cut()


class Owner(Protocol):
    """Who asks over connections, and keeps them between two requests."""

    def take_back(self, connection: "WorkerConnection") -> None:
        """Nothing is under way on it."""


class WorkerConnection(ResponseHandler):
    """One connection."""

    on_arrival: Callable[[], None] | None = None
    """Called when something came, or the connection was lost, after the answer's reader has been given it. It must not raise."""
    free_since_s = 0.0
    """By the event loop's clock. Its owner's to keep."""
    _owner: Owner | None = None
    """None: it is a session's."""
    _lease: Connection | None = None
    """By which the connector knows it, until it is cut or lost."""
    _head: "asyncio.Future[WorkerResponse] | None" = None
    """Of the request that waits for its answer's head."""
    _answer: WorkerResponse | None = None
    """Whose body comes now."""

    def belong(self, owner: Owner, lease: Connection) -> None:
        """`owner` asks over it from now on, as long as it lasts."""
        self._owner, self._lease = owner, lease
        self.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=READ_BUFFER_BYTES)

    def ask(self, request: bytes) -> "asyncio.Future[WorkerResponse]":
        """Send a request while it stands and is free. The answer, once its head is there; aiohttp.ClientError if none comes."""
        assert self.transport is not None, "it stands"
        head = self._head = self._loop.create_future()
        self.transport.write(request)
        return head

    def abandon(self, head: "asyncio.Future[WorkerResponse]") -> None:
        """Nobody waits for what `ask` gave, or takes its answer: it is cut, unless that answer has ended already."""
        if self._head is head:
            self.cut()
        elif not head.cancelled() and head.done() and head.exception() is None:
            head.result().close()

    def cut(self) -> None:
        """End it. Whoever listens hears of it."""
        listener, lease = self.on_arrival, self._lease
        self.on_arrival = self._lease = self._head = self._answer = None
        if lease is not None:
            lease.close()
        if listener is not None:
            listener()

    def data_received(self, data: bytes) -> None:
        """An answer may end with this, and the connection be free: who listened until now still hears of it."""
        listener, owner = self.on_arrival, self._owner
        if owner is None:
            super().data_received(data)
        elif self._parser is not None:
            try:
                messages, _, _ = self._parser.feed_data(data)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, nothing that follows can be read
                self._refuse(f"what came is no HTTP: {type(error).__name__}")
                messages = []
            for message, content in messages:
                self._begin(message, content)
            answer = self._answer
            if answer is None:
                if data and self._head is None:
                    self._refuse("something came that nobody had asked for")
            elif answer.content.is_eof():
                self._end(answer, owner)
        if listener is not None:
            listener()

    def _end(self, answer: WorkerResponse, owner: Owner) -> None:
        """All of an answer has come."""
        self._answer = self._payload = self.on_arrival = answer.connection = None
        if self._should_close:
            self.cut()
        else:
            owner.take_back(self)

    def _begin(self, message: Any, content: aiohttp.StreamReader) -> None:
        """The head of an answer."""
        head, code = self._head, message.code
        if head is None or head.done():
            self._should_close = True  # one more than there were requests, or one that nobody waits for any longer
        elif code == 101:
            self._refuse("the worker wants to speak another protocol")
        elif not 100 <= code < 200:
            self._should_close |= message.should_close
            self._payload = content  # so that it is told if the connection is lost
            self._head, self._answer = None, WorkerResponse(code, message.headers, content, self)
            head.set_result(self._answer)

    def _refuse(self, problem: str) -> None:
        """Read no further. What an answer's reader has not taken yet it may take until the connection has ended."""
        head, self._head = self._head, None
        if head is not None and not head.done():
            head.set_exception(aiohttp.ClientError(problem))
        self._should_close = True
        if self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The reader has the end, or the error: also of an answer that broke off in what is no HTTP, of which it would hear nothing."""
        listener, payload, lease, head, answer = self.on_arrival, self._payload, self._lease, self._head, self._answer
        super().connection_lost(exc)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("the answer ended in what is no HTTP"))
        self._lease = self._head = self._answer = None
        if answer is not None:
            answer.connection = None
        if head is not None and not head.done():
            head.set_exception(self.exception() or aiohttp.ServerDisconnectedError())
        if lease is not None:
            lease.close()
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
