"""Answers in a real Redis: bounded by bytes, gone after their time, never waited for."""

import asyncio

import msgspec
import pytest
import redis
from redis_server import running_redis

from quire_router.background import Background
from quire_router.redis_answers import MAX_WRITES, READ_S, RedisAnswers, redis_client
from quire_router.stored_answers import ENTRY_BYTES, ModelVersion, StoredAnswer

PREFIX = "quire:{answers}:"


def stored(body=b"x"):
    version = ModelVersion(service="ns/s", revision="r", bundle="b")
    return StoredAnswer(stored_ts=1.0, target="m", version=version, is_events=True, headers=[("a", "b")], body=body)


@pytest.fixture
def server(tmp_path):
    with running_redis(tmp_path) as running:
        yield running


@pytest.fixture
async def answers(server):
    background, client = Background(), redis_client(server.url, None)
    yield RedisAnswers(client, background, clock=asyncio.get_running_loop().time, read_s=30.0)
    await background.close()
    await client.aclose()


@pytest.fixture
def look(server):
    with redis.Redis.from_url(server.url) as client:
        yield client


async def put(answers, *keys, body=b"x", ttl_s=60.0, max_bytes=10**9):
    for key in keys:
        answers.put(key, stored(body), ttl_s=ttl_s, max_bytes=max_bytes)
        while answers._num_writes:  # noqa: ASYNC110 - one after the other
            await asyncio.sleep(0)


async def test_an_answer_comes_back_as_it_was_and_expires_by_itself(answers, look):
    await put(answers, b"k")

    assert await answers.get(b"k") == stored()
    assert await answers.get(b"other") is None
    assert 50_000 < look.pttl(PREFIX + b"k".hex()) <= 60_000


async def test_what_was_written_first_makes_room(answers, look):
    size = stored().num_bytes

    await put(answers, b"a", b"b", b"c", b"d", max_bytes=3 * size)

    found = [await answers.get(key) is not None for key in (b"a", b"b", b"c", b"d")]
    assert found == [False, True, True, True]
    assert int(look.get(PREFIX + "total")) == 3 * size
    assert look.zcard(PREFIX + "order") == look.hlen(PREFIX + "sizes") == 3


async def test_an_answer_written_again_is_counted_once(answers, look):
    await put(answers, b"a", b"a", b"a")

    assert int(look.get(PREFIX + "total")) == ENTRY_BYTES + 1


async def test_expired_answers_leave_the_books(answers, look, until):
    await put(answers, b"a", ttl_s=0.01)
    await until(lambda: look.exists(PREFIX + b"a".hex()) == 0)

    await put(answers, b"b")

    assert int(look.get(PREFIX + "total")) == ENTRY_BYTES + 1


async def test_one_larger_than_the_bound_is_not_written(answers, look):
    await put(answers, b"a", body=bytes(2000), max_bytes=2000)

    assert await answers.get(b"a") is None


async def test_what_another_release_wrote_in_another_form_is_none(answers, look):
    look.set(PREFIX + b"k".hex(), b"\x93\x01\x02\x03")

    assert await answers.get(b"k") is None


@pytest.mark.parametrize("stored_ts", [float("nan"), float("inf")])
async def test_an_answer_whose_time_is_no_number_is_none(answers, look, stored_ts):
    look.set(PREFIX + b"k".hex(), msgspec.msgpack.encode(msgspec.structs.replace(stored(), stored_ts=stored_ts)))

    assert await answers.get(b"k") is None


async def test_a_frozen_redis_is_not_waited_for_and_not_asked_again_at_once(answers, server):
    await put(answers, b"k")
    answers._read_s = READ_S
    server.freeze()

    first = await answers.get(b"k")
    pause_s = answers._no_reads_until_s
    second = await answers.get(b"k")
    server.thaw()

    assert (first, second) == (None, None)
    assert answers._no_reads_until_s == pause_s


async def test_no_more_than_so_many_writes_wait(answers, server):
    server.freeze()

    for number in range(3 * MAX_WRITES):
        answers.put(b"%d" % number, stored(), ttl_s=60.0, max_bytes=10**9)

    assert answers._num_writes == len(answers._background) == MAX_WRITES
    server.thaw()


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="scheme"):
        redis_client("http://127.0.0.1", None)


async def test_a_reply_that_came_too_late_is_never_taken_for_the_next_ones(answers, server):
    await put(answers, b"a", body=b"of a")
    await put(answers, b"b", body=b"of b")
    answers._read_s = READ_S
    server.freeze()
    late = await answers.get(b"a")
    server.thaw()
    answers._read_s, answers._no_reads_until_s = 30.0, float("-inf")

    found = [await answers.get(key) for key in (b"b", b"a", b"b")]

    assert late is None
    assert [answer.body for answer in found] == [b"of b", b"of a", b"of b"]
