"""A block in a task has its time, and what cancels the task otherwise is left alone."""

import asyncio

import pytest

from quire_router.time_limit import TimeLimit


async def test_a_block_that_takes_too_long_ends_in_a_timeout_and_its_task_goes_on():
    with pytest.raises(TimeoutError), TimeLimit(0.0):
        await asyncio.Event().wait()

    await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0


async def test_a_block_that_ends_in_time_leaves_nothing_behind():
    with TimeLimit(0.0) as limit:
        limit.end_now()
        done = 1

    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert done == 1
    assert asyncio.current_task().cancelling() == 0


async def test_it_can_be_over_before_its_time():
    with pytest.raises(TimeoutError), TimeLimit(3600.0) as limit:
        limit.end_now()
        await asyncio.Event().wait()


async def test_an_error_of_the_block_is_its_own():
    with pytest.raises(KeyError), TimeLimit(3600.0):
        raise KeyError


async def test_who_cancels_the_task_cancels_it_even_as_its_time_is_over():
    begun = asyncio.Event()
    limits = []

    async def wait():
        with TimeLimit(3600.0) as limit:
            limits.append(limit)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await begun.wait()
    limits[0].end_now()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
