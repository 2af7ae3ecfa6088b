"""What has come of a body, taken in one step: as aiohttp's `read_nowait` does it in five, for each event of each stream.

Only for whoever reads by parts as they come: boundaries of HTTP's chunks are forgotten. Knows nothing of what bodies say.
"""

from aiohttp.streams import StreamReader


def take_arrived(content: StreamReader) -> bytes:
    """All that came and was not taken; b"" if that is nothing. Raises what is wrong with the body."""
    if type(content) is not StreamReader or content._exception is not None:
        return content.read_nowait()
    buffer = content._buffer
    if not buffer:
        return b""
    if len(buffer) > 1 or content._buffer_offset or content._protocol._reading_paused:
        return content.read_nowait()
    data = buffer.popleft()
    content._size = 0
    content._cursor += len(data)
    if content._http_chunk_splits:
        content._http_chunk_splits.clear()
    return data
