"""A client's request that came whole and plain, as the extension read it (`plain_http`): aiohttp's request to whoever handles it.

What hardly anybody asks of a request is made when somebody does.
"""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import HttpVersion11, hdrs
from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from quire_router.client_request import ClientRequest


class PlainRequest(ClientRequest):
    """A POST over HTTP/1.1 of a path without a query, with all of its body, on a connection that goes on."""

    __slots__ = (
        "_protocol",
        "headers",
        "path",
        "whole",
    )  # the latter three are asked for all the time; aiohttp's own would ask a cache each time

    path: str
    headers: CIMultiDictProxy[str]
    """As much of one as the extension's `Headers` are."""
    whole: bytes
    """All of the body."""
    method = hdrs.METH_POST
    version = HttpVersion11
    keep_alive = True
    _method = hdrs.METH_POST
    _version = HttpVersion11
    _task = None  # type: ignore[assignment]
    _writer = None
    _content: StreamReader | None = None

    def __init__(  # pylint: disable=super-init-not-called
        self, path: str, headers: CIMultiDictProxy[str], body: bytes, protocol: RequestHandler
    ) -> None:
        self.path = path
        self.headers = headers
        self.whole = body
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        """What hardly anybody asks for."""
        if name in _MADE:
            made = self.__dict__[name] = _MADE[name](self)
            return made
        raise AttributeError(f"a request has no {name}")

    @property
    def _payload(self) -> StreamReader:  # type: ignore[override]
        """The body, for whoever reads it from a stream."""
        if self._content is None:
            size = len(self.whole)
            self._content = StreamReader(self._protocol, limit=size, loop=self._loop)
            self._content.feed_data(self.whole)
            self._content.feed_eof()
        return self._content

    @property
    def _rel_url(self) -> URL:  # type: ignore[override]
        return URL.build(path=self.path, encoded=True)

    @property
    def _message(self) -> RawRequestMessage:  # type: ignore[override]
        raw = tuple((name.encode(), value.encode()) for name, value in self.headers.items())
        return RawRequestMessage(
            self._method,
            self.path,
            HttpVersion11,
            self._headers,
            raw,
            False,
            None,
            False,
            False,
            self._rel_url,
        )

    def _cancel(self, exc: BaseException) -> None:
        """The connection is gone; whoever reads on is told."""
        if self._content is not None:
            super()._cancel(exc)


_MADE: Mapping[str, Callable[[PlainRequest], Any]] = {
    "_headers": lambda request: CIMultiDictProxy(CIMultiDict(request.headers.items())),
    "_state": lambda request: {},
    "_cache": lambda request: {},
    "_loop": lambda request: request._protocol._loop,
    "_client_max_size": lambda request: request._protocol.max_body_bytes,  # type: ignore[attr-defined]  # a ClientConnection
}
"""Names of what aiohttp's own methods ask for -> how it is made."""
