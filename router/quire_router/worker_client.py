"""Posts to workers at a fraction of the cost of aiohttp's session: its connector and parser, without objects that are made for any use.

The caller has made URL and headers already, wants bytes as they come, and reads every answer to its end or closes it. How connections are
made, and their errors, are aiohttp's own, shared with the session that is given; a connection that is free again waits here for the next
request, not at the connector. Large bodies go through that session.
"""

import asyncio
import io
from collections import deque
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.client_reqrep import ClientRequest
from aiohttp.http_writer import _serialize_headers
from multidict import CIMultiDict
from yarl import URL

from quire_router.connections import UPSTREAM_KEEPALIVE_S
from quire_router.worker_connection import WorkerConnection, WorkerResponse, use_worker_connections

MAX_SENT_AT_ONCE_BYTES = 1024 * 1024
"""Larger bodies are sent in parts, so that they do not hold up the event loop."""
MAX_TARGETS = 4096
"""URLs that are posted to without being looked at anew, and as many addresses whose connections are kept."""


class _Place:
    """An address, and the connections to it that are free: the one that was used last is used first, so that the others may end."""

    __slots__ = ("_note_idle", "_now", "idle", "is_gone", "request")

    def __init__(self, request: ClientRequest, now: Callable[[], float], note_idle: Callable[[], None]) -> None:
        self.request = request
        """What tells the connector where to connect to."""
        self.idle: deque[WorkerConnection] = deque()
        """The longest idle first."""
        self.is_gone = False
        """Nobody asks here any more."""
        self._now = now
        self._note_idle = note_idle

    def take(self) -> WorkerConnection | None:
        """A connection that is free and stands, as far as is known here."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            transport = connection.transport
            is_young = self._now() - connection.free_since_s <= UPSTREAM_KEEPALIVE_S
            if is_young and transport is not None and not transport.is_closing():
                return connection
            connection.cut()
        return None

    def take_back(self, connection: WorkerConnection) -> None:
        """As an Owner."""
        if self.is_gone:
            connection.cut()
            return
        connection.free_since_s = self._now()
        self.idle.append(connection)
        if len(self.idle) == 1:
            self._note_idle()

    def end_older(self, since_s: float) -> None:
        """End what has been idle since before then."""
        while self.idle and self.idle[0].free_since_s < since_s:
            self.idle.popleft().cut()


class Target:
    """A URL that is posted to."""

    __slots__ = ("line", "place", "url")

    def __init__(self, url: URL, place: _Place) -> None:
        self.url = url
        self.place = place
        host = CIMultiDict({hdrs.HOST: place.request.headers[hdrs.HOST]})
        self.line = _serialize_headers(f"POST {url.raw_path_qs} HTTP/1.1", host)[:-2]
        """The first two lines of a request."""


class WorkerClient:
    """One for the process. Does what the proxy needs of `aiohttp.ClientSession.post`. Its connections end with the session, whose connector
    counts them as in use, free or not: it must have no limit."""

    def __init__(self, session: aiohttp.ClientSession, parts: Any = None) -> None:
        """`parts`: the extension module (`native`), if answers are to be read with it."""
        assert session.connector is not None, "an open session has a connector"
        self._session = session
        self._parts = parts
        use_worker_connections(session.connector)
        self._connector = session.connector
        self._loop = asyncio.get_running_loop()
        self._targets: dict[tuple[str, str], Target] = {}
        self._places: dict[tuple[str, str | None, int | None], _Place] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def target(self, base: str, path: str) -> Target:
        """The URL of `path` at the worker at `base`, such as "http://10.0.0.1:8000"."""
        target = self._targets.get((base, path))
        return self._new_target(base, path) if target is None else target

    async def post(
        self, target: Target, body: bytes, headers: CIMultiDict[str]
    ) -> "WorkerResponse | aiohttp.ClientResponse":
        """The answer, once its head is there. `headers` are without Host and Content-Length. aiohttp.ClientError as its session raises
        it."""
        if len(body) > MAX_SENT_AT_ONCE_BYTES:
            data = io.BytesIO(body)
            return await self._session.post(target.url, data=data, headers=headers, allow_redirects=False)
        return await self.send(target, target.line + _serialize_headers(f"Content-Length: {len(body)}", headers) + body)

    async def send(self, target: Target, request: bytes) -> WorkerResponse:
        """As `post`, for the bytes of a request that begins with `target.line`."""
        connection = target.place.take()
        if connection is None:
            connection = await self._connect(target)
        head = connection.ask(request)
        try:
            return await head
        except BaseException:
            connection.abandon(head)
            raise

    async def _connect(self, target: Target) -> WorkerConnection:
        try:
            lease = await self._connector.connect(target.place.request, [], self._session.timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {target.url}") from error
        connection = lease.protocol
        assert isinstance(connection, WorkerConnection), "the connector makes no other ones"
        if not connection.is_connected():
            lease.close()
            raise aiohttp.ServerDisconnectedError
        connection.belong(target.place, lease, self._parts)
        return connection

    def _new_target(self, base: str, path: str) -> Target:
        if len(self._targets) >= MAX_TARGETS:
            self._forget()
        url = URL(base + path)
        key = (url.scheme, url.raw_host, url.port)
        place = self._places.get(key)
        if place is None:
            request = ClientRequest(hdrs.METH_POST, url.origin(), loop=self._loop)
            place = self._places[key] = _Place(request, self._loop.time, self._note_idle)
        target = self._targets[(base, path)] = Target(url, place)
        return target

    def _forget(self) -> None:
        for place in self._places.values():
            place.is_gone = True
            while place.idle:
                place.idle.pop().cut()
        self._places.clear()
        self._targets.clear()

    def _note_idle(self) -> None:
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(UPSTREAM_KEEPALIVE_S, self._sweep)

    def _sweep(self) -> None:
        """End connections that nobody has needed for long."""
        self._sweeping = None
        since_s = self._loop.time() - UPSTREAM_KEEPALIVE_S
        for place in self._places.values():
            place.end_older(since_s)
        if any(place.idle for place in self._places.values()):
            self._note_idle()
