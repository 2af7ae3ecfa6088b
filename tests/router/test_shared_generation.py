"""One answer, many readers: each gets all of it, whenever it joins and however slowly it reads; nothing is left when they are gone."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from quire_contract.openai.errors import ApiError
from quire_router.answer import Answer, BrokenStreamError
from quire_router.shared_generation import MAX_LAG_BYTES, Generation, SharedBytes

TURNS = 30


class Worker:
    """Gives parts as fast as they are taken, and knows how it was left."""

    def __init__(self, parts, error=None, refuse=None):
        self.parts = parts
        self.error = error
        self.refuse = refuse
        self.num_given = 0
        self.is_closed = False
        self.num_calls = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def answer(self):
        self.num_calls += 1
        await self.go_on.wait()
        if self.refuse is not None:
            raise self.refuse
        return Answer(status=200, headers=CIMultiDict(a="b"), parts=self._give(), is_events=True, release=self._release)

    async def _give(self):
        for part in self.parts:
            await asyncio.sleep(0)
            self.num_given += 1
            yield part
        if self.error is not None:
            raise self.error

    async def _release(self):
        self.is_closed = True


class Share:
    """A generation and what it told."""

    def __init__(self, worker, *, max_join_bytes=10**6, limit=10**9):
        self.shared = SharedBytes(limit)
        self.num_closed = 0
        self.owners = []
        self.generation = Generation(
            worker.answer, max_join_bytes=max_join_bytes, shared=self.shared, on_closed=self._closed
        )

    def join(self):
        """Joins; `owners` tells for each reader, in the order of joining, whether it is the owner."""
        place = len(self.owners)
        self.owners.append(None)

        def owns(is_owner):
            self.owners[place] = is_owner

        return self.generation.join(owns)

    def _closed(self, generation):
        assert generation is self.generation
        self.num_closed += 1


async def let_run():
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def rest_of(answer):
    return b"".join([part async for part in answer.parts])


async def walk(parts, steps, *, error, max_join_bytes, limit):
    """Readers join, read on and leave as `steps` say; then all that are left read to the end. What each of them got, and how it ended."""
    worker = Worker(parts, error)
    share = Share(worker, max_join_bytes=max_join_bytes, limit=limit)
    readers = [[await share.join(), b"", None]]
    for step, number in steps:
        if step == "join" and share.generation.is_open:
            readers.append([await share.join(), b"", None])
        elif step == "wait":
            await let_run()
        elif step in ("read", "leave"):
            reader = readers[number % len(readers)]
            if reader[2] is None and step == "leave":
                await reader[0].close()
                reader[2] = "left"
            elif reader[2] is None:
                await take(reader, number // len(readers) + 1)
    while going := [reader for reader in readers if reader[2] is None]:
        for reader in going:
            await take(reader, 1)
    for reader in readers:
        await reader[0].close()
    assert share.shared.num_bytes == 0
    assert share.num_closed == 1
    assert share.generation._task.done()
    ends = [end for _, _, end in readers]
    if "end" in ends:
        assert [end for end, is_owner in zip(ends, share.owners, strict=True) if is_owner].count("end") == 1
    return worker, readers


async def take(reader, number):
    for _ in range(number):
        try:
            reader[1] += await anext(reader[0].parts)
        except StopAsyncIteration:
            reader[2] = "end"
            return
        except BrokenStreamError as error:
            reader[2] = str(error)
            return


step = st.tuples(st.sampled_from(["join", "read", "leave", "wait"]), st.integers(0, 30))


@settings(deadline=None)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=4), max_size=12),
    steps=st.lists(step, max_size=40),
    breaks=st.booleans(),
    max_join_bytes=st.integers(0, 40),
)
def test_every_reader_gets_the_whole_answer_whoever_joins_and_leaves_when(parts, steps, breaks, max_join_bytes):
    error = BrokenStreamError("a died") if breaks else None

    worker, readers = asyncio.run(walk(parts, steps, error=error, max_join_bytes=max_join_bytes, limit=10**9))

    whole = b"".join(parts)
    assert worker.num_calls == 1
    assert worker.is_closed
    for _, got, end in readers:
        assert whole.startswith(got)
        assert end in ("left", "a died" if breaks else "end")
        assert got == whole or end == "left"


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(step, max_size=30), num_parts=st.integers(1, 12))
def test_without_memory_readers_that_fall_behind_are_told_and_the_others_get_all(steps, num_parts):
    parts = [bytes([65 + i]) * 20_000 for i in range(num_parts)]

    _, readers = asyncio.run(walk(parts, steps, error=None, max_join_bytes=10**6, limit=0))

    whole = b"".join(parts)
    assert all(end in ("left", "end") or "too slowly" in end for _, _, end in readers)
    assert all(got == whole for _, got, end in readers if end == "end")
    assert all(whole.startswith(got) for _, got, _ in readers)


async def test_who_leaves_leaves_the_cost_to_the_next_and_who_first_has_all_of_it_pays():
    share = Share(Worker([b"a"] * 3))
    answers = [await share.join() for _ in range(4)]
    owners = [list(share.owners)]

    await anext(answers[0].parts)
    await answers[0].close()
    owners.append(share.owners[1:])
    await rest_of(answers[2])
    owners.append(share.owners[1:])
    for answer in answers[1:]:
        await answer.close()

    assert owners == [[True, False, False, False], [True, False, False], [False, True, False]]
    assert share.owners == [True, False, True, False], "the one that left pays for what it had"


async def test_a_worker_is_not_asked_for_more_than_its_fastest_reader_takes():
    worker = Worker([b"x"] * 100)
    share = Share(worker)
    answers = [await share.join(), await share.join()]

    await anext(answers[0].parts)
    await let_run()

    assert worker.num_given == 1
    assert [await rest_of(answer) for answer in answers] == [b"x" * 99, b"x" * 100]


async def test_a_reader_far_behind_is_ended_and_no_more_than_its_bound_was_kept():
    parts = [bytes(64 * 1024)] * 200
    share = Share(Worker(parts), max_join_bytes=1)
    slow, fast = await share.join(), await share.join()
    kept = []

    async for _ in fast.parts:
        kept.append(share.shared.num_bytes)

    assert max(kept) <= MAX_LAG_BYTES + 2 * 64 * 1024
    with pytest.raises(BrokenStreamError, match="too slowly"):
        await anext(slow.parts)


async def test_nobody_joins_an_answer_whose_beginning_is_gone():
    share = Share(Worker([b"abcd", b"efgh", b"i"]), max_join_bytes=5)
    answer = await share.join()

    await anext(answer.parts)
    first = share.generation.is_open
    await anext(answer.parts)

    assert (first, share.generation.is_open) == (True, False)
    assert await rest_of(answer) == b"i"


async def test_a_latecomer_gets_what_was_sent_in_few_pieces():
    share = Share(Worker([b"0123456789abcdef" * 64] * 256))
    first = await share.join()
    sent = await anext(first.parts)
    for _ in range(255):
        sent += await anext(first.parts)

    late = await share.join()
    pieces = [part async for part in late.parts]

    assert [len(piece) for piece in pieces] == [64 * 1024] * 4
    assert b"".join(pieces) == sent


async def test_one_that_leaves_while_it_waits_leaves_the_others_waiting():
    worker = Worker([b"a"])
    worker.go_on.clear()
    share = Share(worker)
    first, second = [asyncio.create_task(share.join()) for _ in range(2)]
    await let_run()

    first.cancel()
    await let_run()
    worker.go_on.set()

    assert await rest_of(await second) == b"a"
    assert first.cancelled()


async def test_when_all_leave_before_the_answer_begins_the_worker_is_left_too():
    worker = Worker([b"a"])
    worker.go_on.clear()
    share = Share(worker)
    waiting = [asyncio.create_task(share.join()) for _ in range(3)]
    await let_run()

    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    assert (worker.num_calls, share.generation._task.done(), share.generation.is_open) == (1, True, False)


async def test_a_refusal_is_everybodys_in_the_same_words():
    worker = Worker([], refuse=ApiError(429, "full", code="queue_full", headers={"Retry-After": "2"}))
    worker.go_on.clear()
    share = Share(worker)
    waiting = [asyncio.create_task(share.join()) for _ in range(3)]
    await let_run()

    worker.go_on.set()
    ends = await asyncio.gather(*waiting, return_exceptions=True)

    assert [(e.status, e.message, e.code, e.headers) for e in ends] == [
        (429, "full", "queue_full", {"Retry-After": "2"})
    ] * 3
    assert len({id(e) for e in ends}) == 3
