"""The id by which one request is known in every log line and answer, from the client's X-Request-Id or made here."""

import os
import re

MAX_REQUEST_ID_CHARS = 128
_ALLOWED = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:@-]{{0,{MAX_REQUEST_ID_CHARS - 1}}}")


def new_request_id() -> str:
    """An id that nobody else has: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def request_id_from(header: str | None) -> str:
    """The client's id if it is fit for logs and headers (letters, digits, . _ : @ -, at most 128), else a new one."""
    if header is not None and _ALLOWED.fullmatch(header):
        return header
    return new_request_id()
