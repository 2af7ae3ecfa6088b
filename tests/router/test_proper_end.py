"""Only whole answers that ended well are kept."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_router.proper_end import EndWatch, is_proper

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def event(data, name=None):
    head = b"" if name is None else b"event: %b\n" % name.encode()
    return head + b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def chunk(reason=None, index=0):
    return event({"choices": [{"index": index, "delta": {"content": '"finish_reason":"x"'}, "finish_reason": reason}]})


def named(kind, **fields):
    return event({"type": kind, **fields}, kind)


DONE = event(b"[DONE]")
USAGE = event({"choices": [], "usage": {"total_tokens": 3}})
WELL = {
    "chat": (CHAT, [chunk(), b": t 0 1,2\n" + chunk("stop"), USAGE, DONE]),
    "length": ("/v1/completions", [chunk(), chunk("length"), DONE]),
    "two choices": (CHAT, [chunk(), chunk(index=1), chunk("stop", 1), chunk("tool_calls"), DONE]),
    "response": (
        RESPONSES,
        [named("response.created", response={"status": "in_progress"}), named("response.completed", response={"status": "completed"})],
    ),
    "response at its length": (
        RESPONSES,
        [named("response.incomplete", response={"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}})],
    ),
    "message": (
        MESSAGES,
        [named("message_start", message={}), named("content_block_delta", delta={"type": "text_delta", "text": "x"}),
         named("message_delta", delta={"stop_reason": "end_turn"}), named("message_stop")],
    ),
}  # fmt: skip
BADLY = {
    "no end": (CHAT, [chunk(), chunk("stop")]),
    "no reason": (CHAT, [chunk(), DONE]),
    "a choice without end": (CHAT, [chunk(), chunk(index=1), chunk("stop"), DONE]),
    "filtered": (CHAT, [chunk("content_filter"), DONE]),
    "unknown reason": (CHAT, [chunk("abort"), DONE]),
    "error": (CHAT, [chunk("stop"), event({"error": {"message": "x"}}), DONE]),
    "after the end": (CHAT, [chunk("stop"), DONE, chunk()]),
    "nothing": (CHAT, [DONE]),
    "no json": (CHAT, [chunk("stop"), event(b"{"), DONE]),
    "failed response": (RESPONSES, [named("response.failed", response={"status": "failed"})]),
    "filtered response": (
        RESPONSES,
        [named("response.incomplete", response={"status": "incomplete", "incomplete_details": {"reason": "content_filter"}})],
    ),
    "response's error": (RESPONSES, [named("error", code="x"), named("response.completed", response={"status": "completed"})]),
    "refusal": (MESSAGES, [named("message_delta", delta={"stop_reason": "refusal"}), named("message_stop")]),
    "message's error": (MESSAGES, [named("error", error={}), named("message_stop")]),
    "message cut": (MESSAGES, [named("message_delta", delta={"stop_reason": "end_turn"})]),
    "other path": ("/v1/embeddings", [chunk("stop"), DONE]),
}  # fmt: skip


@given(data=st.data())
def test_a_stream_is_judged_alike_however_its_events_arrive(data):
    (path, events), well = data.draw(
        st.sampled_from([(case, True) for case in WELL.values()] + [(case, False) for case in BADLY.values()])
    )
    watch = EndWatch(path)

    rest = list(events)
    while rest:
        number = data.draw(st.integers(1, len(rest)))
        watch.feed(b"".join(rest[:number]))
        rest = rest[number:]

    assert watch.is_proper == well


@pytest.mark.parametrize(
    ("path", "body", "proper"),
    [
        (CHAT, {"choices": [{"finish_reason": "stop"}]}, True),
        (CHAT, {"choices": [{"finish_reason": "stop"}, {"index": 1, "finish_reason": "content_filter"}]}, False),
        (CHAT, {"choices": []}, False),
        (CHAT, {"error": {"message": "x"}, "choices": [{"finish_reason": "stop"}]}, False),
        (RESPONSES, {"status": "completed", "error": None}, True),
        (RESPONSES, {"status": "in_progress"}, False),
        (MESSAGES, {"type": "message", "stop_reason": "tool_use"}, True),
        (MESSAGES, {"type": "error", "error": {}}, False),
        ("/v1/embeddings", {"data": []}, True),
        ("/v1/embeddings", {"error": "x"}, False),
        ("/v1/embeddings", [1], False),
    ],
)
def test_a_whole_answer_is_judged_by_its_own_words(path, body, proper):
    assert is_proper(path, json.dumps(body).encode()) is proper


def test_half_an_answer_is_not_proper():
    assert is_proper(CHAT, b'{"choices": [{"finish_reason": "stop"}') is False
