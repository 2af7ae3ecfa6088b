"""A whole answer, written in one piece: what aiohttp's own response does in a dozen steps, for the only case that is common.

Knows no workers. HTTP/1.1 answers with a body; any other goes aiohttp's way.
"""

from aiohttp import ClientConnectionResetError, HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_writer import _serialize_headers
from multidict import CIMultiDict

_STATUS_WITHOUT_BODY = frozenset({204, 205, 304})


class WholeResponse(web.Response):
    """As `web.Response`, with a body of bytes."""

    _is_written = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write all of it. ConnectionResetError if the client has gone."""
        body = self.body
        is_common = request.version == HttpVersion11 and request.method != hdrs.METH_HEAD
        if not is_common or not isinstance(body, bytes) or self.status < 200 or self.status in _STATUS_WITHOUT_BODY:
            return await super().prepare(request)
        head = _serialize_headers(f"HTTP/1.1 {self.status} {self.reason}", self._complete(request, body))
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ClientConnectionResetError("Cannot write to closing transport")
        self._is_written = True
        transport.write(head + body)
        request.writer.output_size += len(head) + len(body)
        if request.protocol.writing_paused:
            await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to be written."""
        if not self._is_written:
            await super().write_eof(data)

    def _complete(self, request: web.BaseRequest, body: bytes) -> CIMultiDict[str]:
        """Its headers, with those of this connection."""
        headers = self.headers
        if self.keep_alive is None:
            self._keep_alive = request.keep_alive
        if not self.keep_alive:
            headers[hdrs.CONNECTION] = "close"
        headers[hdrs.CONTENT_LENGTH] = str(len(body))
        if hdrs.DATE not in headers:
            headers[hdrs.DATE] = rfc822_formatted_time()
        if hdrs.SERVER not in headers:
            headers[hdrs.SERVER] = SERVER_SOFTWARE
        if body and hdrs.CONTENT_TYPE not in headers:
            headers[hdrs.CONTENT_TYPE] = "application/octet-stream"
        return headers
