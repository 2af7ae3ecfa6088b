"""The id by which one request is known in every log line and answer, from the client's X-Request-Id or made here."""

import os
import re
from collections.abc import Callable, Iterator

NUM_DRAWN = 64
"""Ids for which the system is asked at once."""
MAX_REQUEST_ID_CHARS = 128
_ALLOWED = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:@-]{{0,{MAX_REQUEST_ID_CHARS - 1}}}")


def new_request_id() -> str:
    """An id that nobody else has: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def request_ids() -> Callable[[], str]:
    """Makes ids as `new_request_id` does, and asks the system for many of them at once. Not to be shared with a forked process, nor between
    threads."""
    return _drawn().__next__


def _drawn() -> Iterator[str]:
    while True:
        digits = os.urandom(16 * NUM_DRAWN).hex()
        for start in range(0, len(digits), 32):
            yield digits[start : start + 32]


def request_id_from(header: str | None, new: Callable[[], str] = new_request_id) -> str:
    """The client's id if it is fit for logs and headers (letters, digits, . _ : @ -, at most 128), else a new one."""
    if header is not None and _ALLOWED.fullmatch(header):
        return header
    return new()
