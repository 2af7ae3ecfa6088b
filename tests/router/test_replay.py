"""What a router remembers of a stream, and what it sends on."""

import msgspec
import pytest

from quire_contract.resume import ResumedChoice, ResumeEnvelope
from quire_router.call import Usage
from quire_router.replay import MAX_TOKENS, Replay, usage_of_header

BODY = b'{"model": "m"}'


def envelope_of(replay):
    data = replay.envelope("/v1/completions", BODY)
    return None if data is None else msgspec.json.decode(data, type=ResumeEnvelope)


def test_comment_lines_are_taken_out_and_remembered_however_events_arrive_together():
    events = [
        b": s c3RhdGU\n: u 9 4 0\n: t 0 17\ndata: a\n\n",
        b": t 1 300,70000\n\n",
        b": keep-alive\n\n",
        b": t 0 4,9\ndata: b\n\n",
        b": f 1\nevent: x\ndata: c\n\n",
    ]
    alone, together = Replay(Usage()), Replay(Usage())

    one_by_one = [alone.take(event) for event in events]
    at_once = together.take(b"".join(events))

    assert one_by_one == [b"data: a\n\n", b"", b": keep-alive\n\n", b"data: b\n\n", b"event: x\ndata: c\n\n"]
    assert at_once == b"".join(one_by_one)
    assert envelope_of(alone) == envelope_of(together)
    assert envelope_of(alone) == ResumeEnvelope(
        path="/v1/completions",
        body=BODY.decode(),
        state="c3RhdGU",
        num_events=3,
        choices=[
            ResumedChoice(index=0, token_ids=[17, 4, 9]),
            ResumedChoice(index=1, token_ids=[300, 70000], finished=True),
        ],
        last_choice=0,
    )


def test_usage_is_known_at_every_moment_and_a_resumed_stream_keeps_the_first_workers_prompt():
    usage = Usage()
    replay = Replay(usage)

    replay.take(b": s x\n: u 9 4 0\n: t 0 1,2\ndata: a\n\n")
    begun = msgspec.structs.astuple(usage)
    replay.take(b": u 9 8 2\n: t 0 3\ndata: b\n\n")
    replay.take(b": u 9 8 4\ndata: [DONE]\n\n")

    assert begun == (9, 4, 2)
    assert msgspec.structs.astuple(usage) == (9, 4, 4)


def test_text_that_looks_like_a_comment_line_passes_within_an_event():
    replay = Replay(Usage())
    event = b": t 0 5\ndata: x\n: t 0 6\n\n"

    kept = replay.take(event)

    assert kept == b"data: x\n: t 0 6\n\n"
    assert replay.usage.output == 1


def test_an_event_of_a_dead_engine_and_what_follows_it_never_reach_the_client():
    replay = Replay(Usage())
    text = b'data: {"x":"\\"code\\":\\"engine_dead\\""}\n\n'
    dead = b'data: {"error":{"message":"m","code":"engine_dead"}}\n\ndata: [DONE]\n\n'

    kept = replay.take(text), replay.take(dead)

    assert kept == (text, b"")
    assert (replay.died, replay.is_over, replay.has_ended("/v1/completions")) == (True, True, False)


@pytest.mark.parametrize(
    "event",
    [
        b'event: error\ndata: {"type":"error","code":"engine_dead","message":"m"}\n\n',
        b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"engine_dead"}}}\n\n',
    ],
)
def test_a_dead_engine_is_known_in_the_words_of_responses(event):
    replay = Replay(Usage())

    kept = replay.take(event)

    assert (kept, replay.died) == (b"", True)


@pytest.mark.parametrize(
    "event",
    [
        b'event: response.created\ndata: {"response":{"error":null,"metadata":{"code":"engine_dead"}}}\n\n',
        b'data: {"type":"response.completed","response":{"tools":[{"parameters":{"error":{"code":"engine_dead"}}}]}}\n\n',
        b'data: "code":"engine_dead"\n\n',
    ],
)
def test_what_an_answer_repeats_of_its_request_does_not_make_its_engine_dead(event):
    replay = Replay(Usage())

    kept = replay.take(event)

    assert kept == event
    assert (replay.died, replay.is_over) == (False, False)


def test_what_a_worker_makes_the_router_remember_is_bounded_and_tokens_are_counted_on():
    replay = Replay(Usage())
    ids = b",".join([b"7"] * (1 << 20))

    for _ in range(20):
        replay.take(b": t 0 " + ids + b"\ndata: a\n\n")
    for choice in range(10_000):
        replay.take(b": t %d 1\n: f %d\n\n" % (choice, choice))

    assert envelope_of(replay) is None
    assert (len(replay._ids), len(replay._finished)) == (0, 0)
    assert replay.usage.output == 20 * (1 << 20) + 10_000


def test_empty_lines_in_a_row_pass_as_they_are_and_end_the_record():
    replay = Replay(Usage())
    replay.take(b": s x\n: t 0 1\ndata: a\n\n")

    kept = replay.take(b"\n" * 1_000_000)

    assert kept == b"\n" * 1_000_000
    assert replay.num_events == 1
    assert envelope_of(replay) is None


def test_numbers_of_tokens_that_cannot_be_are_not_believed():
    usage = Usage()
    replay = Replay(usage)

    replay.take(b": u -1000 0 0\n: t 0 1\ndata: a\n\n")
    replay.take(b": u 9 0 %d\ndata: b\n\n" % 10**30)

    assert (usage.prompt, usage.output) == (9, MAX_TOKENS)
    assert usage_of_header(f"9,0,{10**30}") == Usage(prompt=9, cached=0, output=MAX_TOKENS)


def test_a_migrating_stream_keeps_that_to_itself():
    replay = Replay(Usage())

    kept = replay.take(b"data: a\n\n: migrate\n\n")

    assert kept == b"data: a\n\n"
    assert (replay.migrates, replay.num_events) == (True, 1)


@pytest.mark.parametrize(
    ("path", "last", "has_ended"),
    [
        ("/v1/chat/completions", b"data: [DONE]\n\n", True),
        ("/v1/completions", b"data: {}\n\n", False),
        ("/v1/completions", b"", False),
        ("/v1/responses", b"event: response.incomplete\ndata: {}\n\n", True),
        ("/v1/responses", b"event: response.completed.not\ndata: {}\n\n", False),
        ("/v1/responses", b"event: error\ndata: {}\n\n", True),
        ("/v1/messages", b": f 0\nevent: message_stop\ndata: {}\n\n", True),
        ("/v1/messages", b"event: message_delta\ndata: {}\n\n", False),
    ],
)
def test_each_api_says_how_its_streams_end(path, last, has_ended):
    replay = Replay(Usage())

    if last:
        replay.take(b"data: before\n\n" + last)

    assert replay.has_ended(path) is has_ended


@pytest.mark.parametrize(
    "part",
    [
        b": t 0 5,x\ndata: a\n\n",
        b": t 0 5]}\ndata: a\n\n",
        b": u 1\ndata: a\n\n",
        b": f x\ndata: a\n\n",
        b"data: an event cut in the mid",
    ],
    ids=["id", "injection", "usage", "choice", "half"],
)
def test_a_stream_whose_record_is_wrong_cannot_go_on(part):
    replay = Replay(Usage())
    replay.take(b": s x\ndata: 1\n\n")

    replay.take(part)

    assert envelope_of(replay) is None


@pytest.mark.parametrize("header", [None, "", "1,2", "a,b,c"])
def test_usage_is_not_known_from_a_header_that_does_not_say_it(header):
    assert usage_of_header(header) is None


def test_usage_of_a_whole_answer_is_its_header():
    assert usage_of_header("12,8,5") == Usage(prompt=12, cached=8, output=5)
