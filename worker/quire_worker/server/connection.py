"""A client's connection, with our answers to what never reaches a handler.

Knows nothing of routes.
"""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from quire_contract.openai.errors import ApiError, internal
from quire_worker.server.middleware import SERVER_NAME, error_response

CODE_INVALID_HTTP = "invalid_http"


class Connection(RequestHandler):
    """aiohttp's, but bytes that are no HTTP get the nested error body, too, and bodies stay packed (see body.py)."""

    __slots__ = ()

    def __init__(self, server: web.Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        """`options` are aiohttp's."""
        super().__init__(server, loop=loop, auto_decompress=False, **options)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to broken HTTP, or to a failure that nothing else caught; then the connection closes."""
        super().handle_error(request, status, exc, message)  # logs, and raises if part of an answer is out already
        error = internal() if status >= web.HTTPInternalServerError.status_code else _invalid_http(status, message)
        response = error_response(error)
        response.headers["Server"] = SERVER_NAME
        response.force_close()
        return response


def _invalid_http(status: int, message: str | None) -> ApiError:
    """Of the parser's words only what comes before the first colon: behind it stands what the client sent."""
    reason = (message or "").partition(":")[0].strip()
    return ApiError(status, f"The request is not valid HTTP: {reason or 'it cannot be read'}.", code=CODE_INVALID_HTTP)
