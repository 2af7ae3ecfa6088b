"""Reads a request's body within bounds."""

import asyncio
import functools
import zlib
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from quire_contract.openai.decode import BodyT, decode_request
from quire_contract.openai.errors import CODE_INVALID_TYPE, ApiError, body_too_large
from quire_contract.openai.limits import Limits
from quire_worker.server.connection import Connection

_JSON_TYPES = frozenset({"application/json", "application/octet-stream"})
"""aiohttp calls a missing type octet-stream. Others are refused: forms, which any web page can post across origins, above all."""
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""How zlib names each coding."""


ResultT = TypeVar("ResultT")
_INLINE_BYTES = 128 * 1024
"""Smaller bodies are decoded on the event loop."""
CODE_TIMEOUT = "request_timeout"


async def read_as(decode: Callable[[bytes, Limits], ResultT], request: web.Request, limits: Limits) -> ResultT:
    """What `decode` makes of the request's body; a large one is decoded in a thread, so that the event loop goes on."""
    body = await read_body(request)
    if len(body) < _INLINE_BYTES:
        return decode(body, limits)
    return await asyncio.to_thread(decode, body, limits)


async def read_request(kind: type[BodyT], request: web.Request, limits: Limits) -> BodyT:
    """The checked request of type `kind`. ApiError as decode_request."""
    return await read_as(functools.partial(decode_request, kind), request, limits)


async def read_body(request: web.Request) -> bytes:
    """The bytes, unpacked if they came compressed.

    ApiError 413 as soon as they are known to be too many, unread if Content-Length says so; 400 for another type or broken coding;
    408 if they do not come in time.
    """
    limit = request.client_max_size
    if request.content_length is not None and request.content_length > limit:
        raise body_too_large(limit)
    if request.content_type not in _JSON_TYPES:
        message = f"Content-Type {request.content_type} is not supported; send application/json."
        raise ApiError(400, message, code=CODE_INVALID_TYPE)
    try:
        async with asyncio.timeout(_timeout_s(request)):
            body = await request.read()
    except TimeoutError:
        raise ApiError(408, "The request's body did not arrive in time.", code=CODE_TIMEOUT) from None
    except web.HTTPRequestEntityTooLarge:
        raise body_too_large(limit) from None
    except (BadHttpMessage, web.RequestPayloadError):
        raise _broken("Transfer-Encoding") from None
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    return body if coding in {"", "identity"} else _unpack(body, coding, limit)


def _timeout_s(request: web.Request) -> float | None:
    return request.protocol.body_timeout_s if isinstance(request.protocol, Connection) else None


def _unpack(body: bytes, coding: str, limit: int) -> bytes:
    """At most `limit` bytes are ever made. aiohttp would unpack on arrival: all of a bomb, and before anybody is asked for a key."""
    if coding not in _WINDOW_BITS:
        raise ApiError(400, f"Content-Encoding {coding[:50]} is not supported; send {', '.join(_WINDOW_BITS)} or none.")
    unpacker = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise _broken("Content-Encoding") from None
    if len(unpacked) > limit:
        raise body_too_large(limit)
    if not unpacker.eof:
        raise _broken("Content-Encoding")
    return unpacked


def _broken(header: str) -> ApiError:
    return ApiError(400, f"The body is not encoded as {header} says.")
