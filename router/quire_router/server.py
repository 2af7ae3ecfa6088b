"""aiohttp's server with our connections. Knows nothing of routes."""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from quire_router.client_connection import ClientConnection
from quire_router.client_request import ClientRequest
from quire_router.head_watch import KEEP_ALIVE_S, HeadWatch
from quire_router.plain_http import PlainHttp

MAX_PATHS, MAX_PATH_CHARS = 256, 128
"""Paths whose meaning is remembered as they were spelled."""


class RouterServer(web.Server):
    """Makes a ClientConnection for each connection. `max_body_bytes` bounds what `request.read` takes."""

    def __init__(
        self, handler: Any, *, max_body_bytes: int, heads: HeadWatch | None = None, plain: PlainHttp | None = None
    ) -> None:
        """`plain` reads and writes what is plain; None: nothing is, and aiohttp does it all."""
        super().__init__(handler, request_factory=self._request, handler_cancellation=True)
        self.heads = HeadWatch() if heads is None else heads
        self.plain = plain
        self.max_body_bytes = max_body_bytes
        self._own_loop = asyncio.get_running_loop()
        self._paths: dict[str, str] = {}

    def __call__(self) -> RequestHandler:
        """A new connection."""
        return ClientConnection(
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

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        """`writer` and `task` are made when they are needed."""
        del writer, task
        self.heads.came(protocol)
        request = ClientRequest(message, payload, protocol, self._own_loop, self.max_body_bytes)
        spelled = message.path
        path = self._paths.get(spelled)
        if path is not None:
            request._cache["path"] = path
        elif len(spelled) <= MAX_PATH_CHARS:
            if len(self._paths) >= MAX_PATHS:
                self._paths.clear()
            self._paths[spelled] = request.path
        return request
