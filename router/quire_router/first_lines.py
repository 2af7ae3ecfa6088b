"""What answers begin with: their status, and the lines that are the same for all answers of a second. Knows no bodies."""

import functools

from aiohttp import hdrs
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.web_response import REASON_PHRASES


def first_line(status: int) -> bytes:
    """Of an answer over HTTP/1.1."""
    return f"HTTP/1.1 {status} {REASON_PHRASES.get(status, '')}\r\n".encode()


@functools.lru_cache(16)
def first_lines(status: int, second: int) -> bytes:
    """With Date and Server. `second` is now, in Unix time."""
    del second
    date = f"{hdrs.DATE}: {rfc822_formatted_time()}\r\n{hdrs.SERVER}: {SERVER_SOFTWARE}\r\n"
    return first_line(status) + date.encode()
