"""Reads a request's body within bounds."""

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from quire_contract.openai.errors import CODE_INVALID_TYPE, ApiError, body_too_large

_JSON_TYPES = frozenset({"application/json", "application/octet-stream"})
"""aiohttp calls a missing type octet-stream. Others are refused: forms, which any web page can post across origins, above all."""


async def read_body(request: web.Request) -> bytes:
    """The bytes, unpacked if they came compressed.

    ApiError 413 as soon as they are known to be too many, unread if Content-Length says so; 400 for another type or broken coding.
    """
    limit = request.client_max_size
    if request.content_length is not None and request.content_length > limit:
        raise body_too_large(limit)
    if request.content_type not in _JSON_TYPES:
        message = f"Content-Type {request.content_type} is not supported; send application/json."
        raise ApiError(400, message, code=CODE_INVALID_TYPE)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise body_too_large(limit) from None
    except (BadHttpMessage, web.RequestPayloadError):
        raise ApiError(400, "The body is not encoded as Content-Encoding and Transfer-Encoding say.") from None
