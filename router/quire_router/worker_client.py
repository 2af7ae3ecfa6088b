"""Posts to workers at a third of the cost of aiohttp's session: its connector and parser, without objects that are made for any use.

The caller has made URL and headers already, wants bytes as they come, and reads every answer to its end or closes it. Connections, their
reuse and their errors are aiohttp's own, shared with the session that is given. Bodies that are not sent at once go through that session.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.http_writer import _serialize_headers
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from quire_router.connections import READ_BUFFER_BYTES
from quire_router.worker_connection import WorkerConnection, use_worker_connections

MAX_PLACES = 4096
"""Addresses whose connections are asked for without being described anew."""


class WorkerResponse:
    """An answer whose head has come. The part of aiohttp's response that the proxy uses."""

    __slots__ = ("_connection", "_listener", "content", "headers", "status")

    def __init__(
        self, status: int, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader, connection: Connection
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        """The body as it comes. At its end the connection is free for the next request."""
        self._connection: Connection | None = connection
        self._listener: Callable[[], None] | None = None
        content.on_eof(self._end)

    def on_arrival(self, listener: Callable[[], None] | None) -> None:
        """`listener` is called whenever there is more in `content`, its end or an error included, until another one or None is set."""
        self._listener = listener
        protocol = None if self._connection is None else self._connection.protocol
        if isinstance(protocol, WorkerConnection):
            protocol.on_arrival = listener

    def close(self) -> None:
        """The connection is cut, unless all of the body has come; whoever waits for more gets a ClientConnectionError."""
        connection = self._let_go()
        if connection is not None:
            if self.content.exception() is None:  # a connection that is closed here forgets its readers
                self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
            connection.close()
            if self._listener is not None:
                self._listener()

    def _end(self) -> None:
        connection = self._let_go()
        if connection is not None:
            connection.release()

    def _let_go(self) -> Connection | None:
        """The connection, which is this answer's no longer."""
        connection, self._connection = self._connection, None
        if connection is not None and isinstance(connection.protocol, WorkerConnection):
            connection.protocol.on_arrival = None
        return connection


class WorkerClient:
    """One for the process. Has of `aiohttp.ClientSession` what the proxy uses: `post`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        assert session.connector is not None, "an open session has a connector"
        self._session = session
        use_worker_connections(session.connector)
        self._connector = session.connector
        self._places: dict[tuple[str, str | None, int | None], ClientRequest] = {}

    async def post(
        self, url: URL, *, data: Any, headers: CIMultiDict[str], allow_redirects: bool = False
    ) -> "WorkerResponse | aiohttp.ClientResponse":
        """The answer, once its head is there. `headers` are taken over. aiohttp.ClientError as its session raises it."""
        if not isinstance(data, bytes):
            return await self._session.post(url, data=data, headers=headers, allow_redirects=allow_redirects)
        place = self._place(url)
        headers[hdrs.HOST] = place.headers[hdrs.HOST]
        headers[hdrs.CONTENT_LENGTH] = str(len(data))
        head = _serialize_headers(f"POST {url.raw_path_qs} HTTP/1.1", headers)
        try:
            connection = await self._connector.connect(place, [], self._session.timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {url}") from error
        try:
            return await _exchange(connection, head + data)
        except BaseException:
            connection.close()
            raise

    def _place(self, url: URL) -> ClientRequest:
        """What tells the connector where to connect to."""
        key = (url.scheme, url.raw_host, url.port)
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            place = self._places[key] = ClientRequest(hdrs.METH_POST, url.origin(), loop=asyncio.get_running_loop())
        return place


async def _exchange(connection: Connection, request: bytes) -> WorkerResponse:
    protocol = connection.protocol
    if protocol is None or protocol.transport is None or protocol.transport.is_closing():
        raise aiohttp.ServerDisconnectedError
    protocol.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=READ_BUFFER_BYTES)
    protocol.transport.write(request)
    while True:
        try:
            message, content = await protocol.read()
        except HttpProcessingError as error:
            raise aiohttp.ClientError(f"what came is no HTTP: {type(error).__name__}") from None
        if not 100 <= message.code < 200:
            return WorkerResponse(message.code, message.headers, content, connection)
        if message.code == 101:
            raise aiohttp.ClientError("the worker wants to speak another protocol")
