"""A connection to a worker: aiohttp's protocol and parser, which gives its owner one answer after another without a queue between them.

    ask -> head -> parts of the body -> end -> free -> ask ...

It has an owner (`worker_client`) or belongs to a session of aiohttp; then it is what aiohttp made of it. It tells at once when more of an
answer has come: no task is woken for that. Knows nothing of what answers say.

With the extension module, two kinds of reads are not shown to the parser: one that is a whole plain answer, while the parser holds
nothing; and whole chunks of a body, while it is between two chunks, which is where it then still is. It reads all else, and so decides
what every other answer, every end and every error means.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import aiohttp
import msgspec
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from multidict import MultiMapping

from quire_router.connections import READ_BUFFER_BYTES
from quire_router.turn import Turn


class WorkerResponse(msgspec.Struct, eq=False):
    """An answer whose head has come. The part of aiohttp's response that the proxy uses."""

    status: int
    headers: MultiMapping[str]
    _content: aiohttp.StreamReader | None
    connection: "WorkerConnection | None"
    """From which more of it comes. Only that ends this."""
    whole: bytes | None = None
    """The body, if it came with the head; then `content` has it as well."""

    @property
    def content(self) -> aiohttp.StreamReader:
        """The body as it comes. At its end the connection is free for the next request."""
        content = self._content
        if content is None:
            assert self.whole is not None, "there is a reader or all of it"
            content = self._content = _reader_of(self.whole)
        return content

    def on_arrival(
        self,
        listener: Callable[[], None] | None,
        taker: Callable[[bytes], bool] | None = None,
        take_read: "TakeRead | None" = None,
    ) -> None:
        """`listener` is called whenever there is more in `content`, its end or an error included, until another one or None is set. What
        comes while nothing is unread may be given to `taker` instead: whether it took it. `take_read` is the quick way to that."""
        connection = self.connection
        if connection is not None:
            connection.on_arrival, connection.on_part, connection.on_read = listener, taker, take_read

    def close(self) -> None:
        """The connection is cut, unless all of the body has come; whoever waits for more gets a ClientConnectionError."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if self.content.exception() is None:  # a connection that is closed here forgets its readers
            self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
        connection.cut()


TakeRead = Callable[["WorkerConnection", Any, bytes], bool]
"""Told of a connection, what follows its body's chunks (or None), and a read: whether it did with it all that the connection would."""


def _reader_of(whole: bytes) -> aiohttp.StreamReader:
    loop = asyncio.get_running_loop()
    reader = aiohttp.StreamReader(BaseProtocol(loop), READ_BUFFER_BYTES, loop=loop)
    reader.feed_data(whole)
    reader.feed_eof()
    return reader


class Owner(Protocol):
    """Who asks over connections, and keeps them between two requests."""

    def take_back(self, connection: "WorkerConnection") -> None:
        """Nothing is under way on it."""


class WorkerConnection(ResponseHandler):
    """One connection."""

    on_arrival: Callable[[], None] | None = None
    """Called when something came, or the connection was lost, after the answer's reader has been given it. It must not raise."""
    on_part: Callable[[bytes], bool] | None = None
    """Asked to take what came of a body, instead, while nothing is unread. It must not raise."""
    on_read: TakeRead | None = None
    """Asked before that."""
    free_since_s = 0.0
    """By the event loop's clock. Its owner's to keep."""
    _owner: Owner | None = None
    """None: it is a session's."""
    _lease: Connection | None = None
    """By which the connector knows it, until it is cut or lost."""
    _head: Turn[WorkerResponse] | None = None
    """Of the request that waits for its answer's head."""
    _begun: tuple[Turn[WorkerResponse], WorkerResponse] | None = None
    """Who is to be told of an answer that has begun, once what came has been read."""
    _answer: WorkerResponse | None = None
    """Whose body comes now."""
    _parts: Any = None
    """The extension module; None: the parser reads everything."""
    _turn: type[Turn[WorkerResponse]] = Turn
    _is_fresh = False
    """The parser holds nothing. Never without the extension module."""
    _chunks: Any = None
    """Follows the body that comes now."""
    _num_missing: int | None = None
    """Bytes of the answer that comes now, if that is known."""
    _is_feeding = False
    """A reader is given what the parser has not seen."""

    def belong(self, owner: Owner, lease: Connection, parts: Any = None) -> None:
        """`owner` asks over it from now on, as long as it lasts. `parts`: the extension module."""
        self._owner, self._lease, self._parts = owner, lease, parts
        if parts is not None:
            self._turn = parts.Turn
        self._make_parser()

    def _make_parser(self) -> None:
        self.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=READ_BUFFER_BYTES)
        self._is_fresh = self._parts is not None

    def ask(self, request: bytes) -> Turn[WorkerResponse]:
        """Send a request while it stands and is free. The answer, once its head is there; aiohttp.ClientError if none comes. Who waits goes
        on within the read that brings the head."""
        assert self.transport is not None, "it stands"
        self._head = head = self._turn(self._loop)
        self.transport.write(request)
        return head

    def abandon(self, head: Turn[WorkerResponse]) -> None:
        """Nobody waits for what `ask` gave, or takes its answer: it is cut, unless that answer has ended already."""
        if self._head is head:
            self.cut()
        elif head.done() and head.exception() is None:
            head.result().close()

    def cut(self) -> None:
        """End it. Whoever listens hears of it."""
        listener, lease = self.on_arrival, self._lease
        self.on_arrival = self.on_part = self.on_read = None
        self._lease = self._head = self._answer = self._chunks = None
        if lease is not None:
            lease.close()
        if listener is not None:
            listener()

    def data_received(self, data: bytes) -> None:
        """An answer may end with this, and the connection be free: who listened until now still hears of it."""
        on_read = self.on_read
        if on_read is not None and on_read(self, self._chunks, data):
            return
        if self._is_fresh and data:  # nobody listens
            self._read_first(data)
            return
        chunks = self._chunks
        if chunks is not None and data:
            part = chunks.feed(data)
            if part is not None and self._give(part, chunks.num_bytes):
                return
        listener, owner = self.on_arrival, self._owner
        if owner is None:
            super().data_received(data)
        elif self._parser is not None:
            if self._num_missing is not None:
                self._num_missing -= len(data)
            self._read(data, owner)
        if listener is not None:
            listener()
        if self._begun is not None:
            self._tell_begun()

    def _tell_begun(self) -> None:
        assert self._begun is not None, "somebody is to be told"
        (head, answer), self._begun = self._begun, None
        if not head.done():
            head.wake(answer)

    def _give(self, part: bytes, num_bytes: int) -> bool:
        """Give away what is next of the body, and leaves the parser where it is. False: it is the parser's, which is not so far yet, in all
        of so many bytes of the body."""
        content = self._payload
        if content is None or self._reading_paused or content.total_bytes + len(part) != num_bytes:
            return False
        taker = self.on_part
        if taker is not None and not content._buffer and taker(part):
            content.total_bytes = num_bytes
            content._cursor += len(part)  # it has been read: where the parser's chunks ended before it is of no use
            return True
        self._is_feeding = True
        content.feed_data(part)
        self._is_feeding = False
        if self.on_arrival is not None:
            self.on_arrival()
        return True

    def _read_first(self, data: bytes) -> None:
        """Read what comes while the parser holds nothing: without it if that is a whole answer."""
        head, owner = self._head, self._owner
        assert owner is not None, "a session's connection is never fresh"
        if head is None or head.done():
            found = None
        else:
            found = self._parts.read_answer(data)
            if type(found) is tuple:
                self._head = None
                if self._should_close:
                    self.cut()
                else:
                    owner.take_back(self)
                status, headers, whole = found
                head.wake(WorkerResponse(status, headers, None, None, whole))
                return
        at = found or 0
        self._num_missing = None if at >= 0 else -at
        self._read(data, owner, body_at=max(0, at))
        if self._begun is not None:
            self._tell_begun()

    def _read(self, data: bytes, owner: Owner, body_at: int = 0) -> None:
        """Have the parser read. `body_at`: where the chunks of the one answer in `data` begin, if they can be followed."""
        self._is_fresh = self._is_fresh and not data
        try:
            messages, _, _ = self._parser.feed_data(data)  # type: ignore[union-attr]
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, nothing that follows can be read
            self._refuse(f"what came is no HTTP: {type(error).__name__}")
            messages = []
        for message, content in messages:
            self._begin(message, content)
        answer = self._answer
        if answer is None:
            if data and self._head is None:
                self._refuse("something came that nobody had asked for")
            return
        if body_at and len(messages) == 1:
            self._follow(answer.content, data[body_at:])
        if answer.content.is_eof():
            self._end(answer, owner)

    def _follow(self, content: aiohttp.StreamReader, data: bytes) -> None:
        """From here on chunks need not be shown to the parser. `data` was."""
        self._chunks = self._parts.Chunks()
        self._chunks.feed(data)
        if not data:
            content.begin_http_chunk_receiving()  # a reader must hear of chunks before it is given any

    def _end(self, answer: WorkerResponse, owner: Owner) -> None:
        """All of an answer has come."""
        chunks = self._chunks
        self.on_arrival = self.on_part = self.on_read = None
        self._answer = self._payload = self._chunks = answer.connection = None
        num_missing, self._num_missing = self._num_missing, None
        if num_missing == 0 or (chunks is not None and chunks.is_done):
            self._is_fresh = True
        elif self._parts is not None and not self._should_close:
            self._renew_parser()
        if self._should_close:
            self.cut()
        else:
            owner.take_back(self)

    def _renew_parser(self) -> None:
        """So that it is known to hold nothing. What has begun beyond the answer's end is nobody's."""
        try:
            has_begun = self._parser.feed_eof() is not None  # type: ignore[union-attr]
        except Exception:  # noqa: BLE001 - it is no answer either
            has_begun = True
        self._should_close |= has_begun
        self._make_parser()

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
            self._begun = head, self._answer

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
        self._lease = self._head = self._answer = self._chunks = self.on_part = self.on_read = None
        if answer is not None:
            answer.connection = None
        if head is not None and not head.done():
            head.set_exception(self.exception() or aiohttp.ServerDisconnectedError())
        if lease is not None:
            lease.close()
        if listener is not None:
            listener()

    def pause_reading(self) -> None:
        """The parser, paused, would keep what it is shown next; it is not while it reads nothing."""
        if self._is_feeding:
            self._reading_paused = True
            self._pause_transport_reading()
        else:
            super().pause_reading()

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
