"""Streams cut anywhere come out in whole events."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from quire_router.sse import MAX_EVENT_BYTES, EventCutter

EVENTS = st.lists(
    st.binary(min_size=1, max_size=40).map(lambda b: b"data: " + b.replace(b"\n", b"").replace(b"\r", b""))
)


@given(EVENTS, st.sampled_from([b"\n\n", b"\r\n\r\n"]), st.lists(st.integers(0, 600)))
def test_whole_events_come_out_wherever_the_stream_is_cut(events, end, cuts):
    text = b"".join(event + end for event in events)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    cutter = EventCutter()

    parts = [cutter.cut(text[a:b]) for a, b in itertools.pairwise(edges) if b > a]

    assert b"".join(parts) == text
    assert all(part.endswith(end) for part in parts if part)
    assert cutter.is_between_events


def test_a_stream_that_ends_within_an_event_is_known_to():
    cutter = EventCutter()

    got = cutter.cut(b"data: a\n\ndata: b\n")

    assert got == b"data: a\n\n"
    assert not cutter.is_between_events


def test_an_event_without_end_does_not_fill_the_memory():
    cutter = EventCutter()

    sizes = [len(cutter.cut(b"x" * 1_000_000)) for _ in range(20)]

    assert sum(sizes) >= 20_000_000 - MAX_EVENT_BYTES
    assert max(sizes) <= MAX_EVENT_BYTES + 1_000_000
