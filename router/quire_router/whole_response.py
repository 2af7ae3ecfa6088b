"""A whole answer, written in one piece: what aiohttp's own response does in a dozen steps, for the only case that is common.

Knows no workers. HTTP/1.1 answers with a body; any other goes aiohttp's way.
"""

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

from quire_router.first_lines import first_line, first_lines
from quire_router.passed_headers import PassedHeaders
from quire_router.plain_http import PlainHttp

_STATUS_WITHOUT_BODY = frozenset({204, 205, 304})


class WholeResponse(web.StreamResponse):
    """As `web.Response` with a body of bytes."""

    __slots__ = ("_keep_alive", "_passed", "_status", "_whole")

    _passed: PassedHeaders | None
    """Where nobody has asked for its headers yet."""
    _plain: web.Response | None = None
    """The same as aiohttp sends it."""

    def __init__(self, *, status: int = 200, headers: Mapping[str, str] | PassedHeaders, body: bytes) -> None:
        """`headers` are taken over."""
        self._status = status
        self._whole = body
        self._keep_alive: bool | None = None
        if type(headers) is PassedHeaders:
            self._passed = headers
        else:
            self._passed = None
            self._headers = headers if type(headers) is CIMultiDict else CIMultiDict(headers)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """What hardly anybody asks for."""
        if name == "_headers" and self._passed is not None:
            self._headers, self._passed = self._passed.made(), None
            return self._headers
        if name == "_state":
            self._state = {}
            return self._state
        if name == "_reason":
            return REASON_PHRASES.get(self._status, "")
        raise AttributeError(name)

    def written(self, plain: PlainHttp) -> bytes | None:
        """All of it, for a connection whose request was plain, and which may go on. None: ask for `encoded`."""
        passed, status = self._passed, self._status
        if passed is None or self._keep_alive is False or status < 200 or status in _STATUS_WITHOUT_BODY:
            return None
        written: bytes | None = plain.write(
            status, passed.theirs, passed.request_id, passed.endpoint_id, passed.route, self._whole, passed.added
        )
        if written is not None:
            self._keep_alive = True
        return written

    def encoded(self, request: web.BaseRequest) -> bytes | None:
        """All of it, for the connection of `request`. None: it must go aiohttp's way."""
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
            start = first_line(status)
        else:
            start = first_lines(status, int(time.time()))
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
