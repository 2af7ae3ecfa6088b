"""Serves an application on a socket: aiohttp's server with our connections and our limits on them.

Knows no routes.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import socket
import ssl
from collections.abc import AsyncIterator

from aiohttp import web

from quire_worker.server.connection import Connection, ConnectionCount

_ACCESS_LOG_FORMAT = "%a %r %s %b %Tf"
"""Peer, request line, status, bytes, seconds. No headers."""
_BACKLOG = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What a client may cost before its request is read."""

    header_timeout_s: float = 15.0
    body_timeout_s: float = 60.0
    send_timeout_s: float = 120.0
    keep_alive_timeout_s: float = 75.0
    max_connections: int = 4096


@contextlib.asynccontextmanager
async def listening(
    app: web.Application,
    sock: socket.socket,
    limits: ConnectionLimits,
    *,
    shutdown_timeout_s: float,
    tls: ssl.SSLContext | None = None,
    access_log: logging.Logger | None = None,
) -> AsyncIterator[None]:
    """The server of `app` on the running loop, while entered; `sock` is bound. On leaving, handlers have `shutdown_timeout_s` left."""
    quiet = logging.getLogger("quire_worker.http")
    quiet.setLevel(logging.CRITICAL)  # aiohttp logs broken requests with parts of their headers
    runner = web.AppRunner(app, handler_cancellation=True, handle_signals=False, shutdown_timeout=shutdown_timeout_s)
    await runner.setup()
    assert runner.server is not None, "it was just set up"
    loop = asyncio.get_running_loop()
    connect = functools.partial(
        Connection,
        runner.server,
        ConnectionCount(limits.max_connections),
        loop=loop,
        header_timeout_s=limits.header_timeout_s,
        body_timeout_s=limits.body_timeout_s or None,
        send_timeout_s=limits.send_timeout_s,
        keepalive_timeout=limits.keep_alive_timeout_s,
        logger=quiet,
        access_log=access_log,
        access_log_format=_ACCESS_LOG_FORMAT,
    )
    handshake_s = limits.header_timeout_s if tls is not None and limits.header_timeout_s > 0 else None
    server = await loop.create_server(connect, sock=sock, backlog=_BACKLOG, ssl=tls, ssl_handshake_timeout=handshake_s)
    try:
        yield
    finally:
        server.close()
        await runner.cleanup()
