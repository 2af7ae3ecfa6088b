"""Connections to workers."""

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

UPSTREAM_KEEPALIVE_S = 15.0
"""Idle connections to workers; shorter than any worker's own limit, so that a request rarely meets one that is just being closed."""

RECEIVE_BUFFER_BYTES = 256 * 1024
"""Of an answer that its client does not take, what the kernel holds here before its worker has to wait. Left alone it would be megabytes of
the router's memory for each slow client."""

READ_BUFFER_BYTES = 32 * 1024
"""Of the same, what is kept unread here before the connection is read no further: twice as much, and one read of the socket."""


@contextlib.asynccontextmanager
async def client_session(connect_timeout_s: float) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections to workers: as many as needed, kept alive, answers left as they are."""
    connector = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=UPSTREAM_KEEPALIVE_S, socket_factory=keepalive_socket, use_dns_cache=True
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        auto_decompress=False,
        read_bufsize=READ_BUFFER_BYTES,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield session


def keepalive_socket(address: Any) -> socket.socket:
    """A socket whose other end is missed within 20 s, should it vanish without a word, and that takes little ahead of its reader."""
    family, kind, protocol, _name, _address = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        if hasattr(socket, option):  # Linux
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made
