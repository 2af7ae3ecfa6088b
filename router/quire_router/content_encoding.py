"""Undoes the Content-Encoding of a request's body, no further than a body may go: a megabyte may stand for a thousand.

Done here and not by the HTTP server, which would go on with the rest of such a body on the event loop, also for clients without a key.
"""

import asyncio
import zlib

from quire_contract.openai.errors import ApiError, body_too_large

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """`body` without the encoding of its header. ApiError 413 if it is longer than `max_bytes` then, 400 if it cannot be decoded,
    415 for an encoding that is not known here."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WINDOW_BITS:
        raise ApiError(
            415,
            f"Content-Encoding {name[:50]!r} is not supported; use gzip or deflate, or send the body as it is.",
            code="unsupported_content_encoding",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    return await asyncio.to_thread(_inflated, body, _WINDOW_BITS[name], max_bytes)


def _inflated(body: bytes, window_bits: int, max_bytes: int) -> bytes:
    try:
        try:
            return _whole(zlib.decompressobj(window_bits), body, max_bytes)
        except zlib.error:
            if window_bits > zlib.MAX_WBITS:
                raise
            raw = zlib.decompressobj(-zlib.MAX_WBITS)  # "deflate" without zlib's frame, as some send it
            return _whole(raw, body, max_bytes)
    except zlib.error:
        raise ApiError(
            400, "The body does not have the Content-Encoding or Transfer-Encoding it claims.", code="invalid_http"
        ) from None


def _whole(stream: "zlib._Decompress", body: bytes, max_bytes: int) -> bytes:
    out = stream.decompress(body, max_bytes + 1)
    if len(out) > max_bytes:
        raise body_too_large(max_bytes)
    if not stream.eof or stream.unused_data:
        raise zlib.error("the data ends too early, or goes on after its end")
    return out
