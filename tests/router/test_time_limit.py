"""A block in a task has its time, and what cancels the task otherwise is left alone."""

import asyncio

import pytest

from quire_router.time_limit import MAX_QUEUES, TimeLimit, TimeLimits


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


async def test_limits_of_one_length_end_in_their_order_and_only_where_somebody_still_waits():
    limits, ended = TimeLimits(), []

    async def wait(name, until):
        try:
            with limits.of(0.01):
                await until.wait()
        except TimeoutError:
            ended.append(name)

    early, never = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(wait(name, until)) for name, until in (("a", never), ("b", early), ("c", never))]
    await asyncio.sleep(0)
    early.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    await asyncio.wait_for(wait("d", never), 60)

    assert ended == ["a", "c", "d"]


async def test_a_limit_with_others_can_be_over_before_its_time_and_more_lengths_than_share_a_timer_hold_as_well():
    limits = TimeLimits()
    for number in range(MAX_QUEUES):
        with limits.of(1000.0 + number):
            pass

    with pytest.raises(TimeoutError), limits.of(1000.0) as limit:
        limit.end_now()
        await asyncio.Event().wait()
    with pytest.raises(TimeoutError), limits.of(0.0):
        await asyncio.Event().wait()

    await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0
