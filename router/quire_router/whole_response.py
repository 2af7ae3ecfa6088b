"""A whole answer, written in one piece: what aiohttp's own response does in a dozen steps, for the only case that is common.

Knows no workers. HTTP/1.1 answers with a body; any other goes aiohttp's way.
"""

import functools
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_writer import _serialize_headers
from aiohttp.web_response import REASON_PHRASES
from multidict import CIMultiDict

from quire_router.passed_headers import PassedHeaders
from quire_router.plain_http import PlainHttp

_STATUS_WITHOUT_BODY = frozenset({204, 205, 304})


class WholeResponse(web.StreamResponse):
    """As `web.Response` with a body of bytes."""

    _passed: PassedHeaders | None = None
    _plain: web.Response | None = None
    """The same as aiohttp sends it."""

    def __init__(self, *, status: int = 200, headers: Mapping[str, str] | PassedHeaders, body: bytes) -> None:
        """`headers` are taken over."""
        self._state = {}
        if isinstance(headers, PassedHeaders):
            self._passed = headers
        else:
            self._headers = headers if type(headers) is CIMultiDict else CIMultiDict(headers)
        self._status, self._reason = status, REASON_PHRASES.get(status, "")
        self._whole = body

    def __getattr__(self, name: str) -> Any:
        """The map of a worker's headers, once it is asked for."""
        if name != "_headers" or self._passed is None:
            raise AttributeError(name)
        self._headers = self._passed.made()
        return self._headers

    def encoded(self, request: web.BaseRequest, plain: PlainHttp | None = None) -> bytes | None:
        """All of it, for the connection of `request`, by `plain` if that can. None: it must go aiohttp's way."""
        status, body = self._status, self._whole
        if (
            request.version != HttpVersion11
            or request.method == hdrs.METH_HEAD
            or status < 200
            or status in _STATUS_WITHOUT_BODY
        ):
            return None
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if plain is not None and self._passed is not None and self._keep_alive and "_headers" not in self.__dict__:
            written = plain.written(_first_lines(status, self._reason, int(time.time())), self._passed, body)
            if written is not None:
                return written
        headers = self._headers
        if not self._keep_alive:
            headers[hdrs.CONNECTION] = "close"
        if hdrs.CONTENT_LENGTH in headers:
            del headers[hdrs.CONTENT_LENGTH]
        if body and hdrs.CONTENT_TYPE not in headers:
            headers[hdrs.CONTENT_TYPE] = "application/octet-stream"
        if hdrs.DATE in headers or hdrs.SERVER in headers:
            headers.setdefault(hdrs.DATE, rfc822_formatted_time())
            headers.setdefault(hdrs.SERVER, SERVER_SOFTWARE)
            start = _first_line(status, self._reason)
        else:
            start = _first_lines(status, self._reason, int(time.time()))
        return start + _serialize_headers(f"{hdrs.CONTENT_LENGTH}: {len(body)}", headers) + body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """aiohttp's way."""
        self._plain = web.Response(status=self._status, headers=self._headers, body=self._whole)
        if self._keep_alive is False:
            self._plain.force_close()
        writer = await self._plain.prepare(request)
        self._keep_alive = self._plain.keep_alive
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """The end of what `prepare` began."""
        assert self._plain is not None, "it was prepared"
        await self._plain.write_eof(data)


def _first_line(status: int, reason: str) -> bytes:
    return f"HTTP/1.1 {status} {reason}\r\n".encode()


@functools.lru_cache(16)
def _first_lines(status: int, reason: str, second: int) -> bytes:
    """With what is the same for all answers of a second."""
    del second  # it is now
    date = f"{hdrs.DATE}: {rfc822_formatted_time()}\r\n{hdrs.SERVER}: {SERVER_SOFTWARE}\r\n"
    return _first_line(status, reason) + date.encode()
