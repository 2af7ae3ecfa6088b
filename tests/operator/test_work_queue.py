"""The queue coalesces, keeps a key to one worker, and waits longer after each failure."""

import asyncio
import random

from quire_contract.kube.client import KubeError
from quire_operator.work_queue import PermanentError, TemporaryError, WorkQueue, work


async def test_a_key_added_twice_is_taken_once() -> None:
    queue: WorkQueue[str] = WorkQueue(random.Random(1))
    queue.add("a")
    queue.add("b")
    queue.add("a")

    assert [await queue.take(), await queue.take()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_added_while_it_is_worked_on_comes_again_after() -> None:
    queue: WorkQueue[str] = WorkQueue(random.Random(1))
    queue.add("a")
    key = await queue.take()
    queue.add("a")
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert not taking.done()

    queue.done(key)

    assert await taking == "a"


async def test_the_earliest_of_several_wishes_counts() -> None:
    queue: WorkQueue[str] = WorkQueue(random.Random(1))
    queue.add("a", 3600)
    queue.add("a", 0.01)
    queue.add("a", 1800)

    async with asyncio.timeout(60):
        assert await queue.take() == "a"


async def test_an_urgent_key_comes_before_those_that_were_due_earlier() -> None:
    queue: WorkQueue[str] = WorkQueue(random.Random(1), urgent=["z"])
    queue.add("a")
    queue.add("z", 3600)
    queue.add("b")
    queue.add("z")

    taken = [await queue.take() for _ in range(3)]

    assert taken == ["z", "a", "b"]


async def test_waits_grow_with_failures_and_begin_anew_after_a_success() -> None:
    queue: WorkQueue[str] = WorkQueue(random.Random(1))

    waits = [queue.failed("a") for _ in range(12)]
    queue.succeeded("a")

    assert waits[0] <= 0.5
    assert 30 <= waits[-1] <= 60
    assert queue.failed("a") <= 0.5
    assert queue.failed("a", 7.0) == 7.0


async def test_workers_survive_whatever_a_pass_raises() -> None:
    queue: WorkQueue[str] = WorkQueue(random.Random(1))
    told: list[str] = []
    errors = {
        "temporary": TemporaryError("not yet", 3600),
        "permanent": PermanentError("spec.x: wrong"),
        "server": KubeError(503, "Unavailable", "", 3600),
        "bug": ZeroDivisionError(),
    }
    finished = asyncio.Event()

    async def reconcile(key: str) -> None:
        if key in errors:
            raise errors[key]
        finished.set()

    for key in (*errors, "last"):
        queue.add(key)
    worker = asyncio.create_task(work(queue, reconcile, told.append))
    async with asyncio.timeout(60):
        await finished.wait()
        await asyncio.sleep(0)
    worker.cancel()

    assert told == ["retry", "permanent", "retry", "error", "success"]
