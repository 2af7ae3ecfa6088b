"""Server-sent events that carry their type twice, as the `event:` line and in the data: the streams of /v1/responses and /v1/messages."""

import msgspec


def named_event(event: msgspec.Struct) -> bytes:
    """One SSE event; the struct's tag is its name."""
    return b"event: %b\ndata: %b\n\n" % (event_name(type(event)).encode(), msgspec.json.encode(event))


def event_name(kind: type[msgspec.Struct]) -> str:
    """The tag of an event's type."""
    tag = kind.__struct_config__.tag
    assert isinstance(tag, str), "an event's type is tagged with its name"
    return tag
