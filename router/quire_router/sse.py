"""Cuts a stream of server-sent events at event boundaries, so that a client never gets half of one.

    from the worker   | data: a\n\nda | ta: b\n\n | data: c\n\n |
    to the client     | data: a\n\n   | data: b\n\n | data: c\n\n |

Bytes only: it does not look into events.
"""

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""An event longer than this is relayed as it comes: memory is bounded, whatever a worker sends."""


class EventCutter:
    """Give it what arrived, get back the whole events in it (b"" if none ended)."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = bytearray()
        """Came, and was not given back: the beginning of an event."""

    @property
    def is_between_events(self) -> bool:
        """Whether all that arrived has been given back."""
        return not self.held

    def cut(self, data: bytes) -> bytes:
        """The whole events in what is held and `data`; the rest is held."""
        held = self.held
        if not held and data.endswith(b"\n\n"):
            return data  # the common case: a worker writes whole events
        start = max(0, len(held) - 3)  # a boundary may have begun in what is held
        held += data
        end = max(_end_of(held.rfind(b"\n\n", start), 2), _end_of(held.rfind(b"\r\n\r\n", start), 4))
        if not end and len(held) > MAX_EVENT_BYTES:
            end = len(held)
        if not end:
            return b""
        whole = bytes(held[:end])
        del held[:end]
        return whole


def _end_of(found: int, length: int) -> int:
    return found + length if found >= 0 else 0
