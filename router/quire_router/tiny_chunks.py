"""Recognises bodies that are cut into chunks of a few bytes: megabytes of those would keep the parser, and so all streams, for seconds.

Looks at bytes as they arrive, before they are parsed. JSON holds no bare line ends inside its strings and no bare numbers on lines of
their own, so what has many lines with a chunk's size is chunks.
"""

import re

MIN_BYTES = 4096
"""Less at once costs no more than any other message."""
MIN_CHUNK_BYTES = 32
"""Of a chunk with its size and its line ends, on average. Writers that flush each small piece stay well above."""
_SIZES = re.compile(rb"\r\n[0-9a-fA-F]+(?:;[^\r\n]*)?(?=\r\n)")


def has_tiny_chunks(data: bytes) -> bool:
    """Whether what has arrived is mostly that."""
    if len(data) < MIN_BYTES or data.count(b"\r\n") * MIN_CHUNK_BYTES < 2 * len(data):
        return False
    return len(_SIZES.findall(data)) * MIN_CHUNK_BYTES > len(data)
