"""A client's request as aiohttp's, for a fraction of what making that costs. Knows nothing of routes."""

import asyncio
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


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
