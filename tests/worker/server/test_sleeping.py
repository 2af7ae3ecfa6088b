"""What the API process says of an engine that falls asleep or wakes, while those who asked for it come and go."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from quire_contract.startup_report import SleepState
from quire_worker.engine.messages import SleepChanged
from quire_worker.server.sleeping import Sleeping
from quire_worker.server.startup import Startup


class Engine:
    """Does what it was told when the test lets it."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[bool] = asyncio.Queue()
        self.may_change = asyncio.Event()
        self.is_asleep = False

    async def change_sleep(self, *, asleep: bool) -> SleepChanged:
        self.told.put_nowait(asleep)
        await self.may_change.wait()
        self.is_asleep = asleep
        return SleepChanged(asleep=asleep, size_bytes=1, time_s=0.5)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def states() -> list[SleepState]:
    """Each state as it came."""
    return []


@pytest.fixture
def sleeping(engine: Engine, states: list[SleepState]) -> Sleeping:
    """Of a worker that is ready and has no requests."""
    lifecycle = SimpleNamespace(phase="ready", set_asleep=lambda asleep: None)
    serving: Any = SimpleNamespace(engine=engine, lifecycle=lifecycle, num_inside=0)
    startup = Startup("pod", "model", lambda: 0.0, age_s=0.0)
    return Sleeping(serving, startup, states.append)


async def test_who_leaves_while_the_engine_falls_asleep_leaves_a_worker_that_says_so_and_can_be_woken(
    sleeping: Sleeping, engine: Engine, states: list[SleepState]
) -> None:
    leaving = asyncio.create_task(sleeping.sleep(0))
    async with asyncio.timeout(60):
        assert await engine.told.get() is True
        leaving.cancel()
        waking = asyncio.create_task(sleeping.wake())
        await asyncio.sleep(0)
        amid = sleeping.state
        engine.may_change.set()
        answer = await waking
    await asyncio.wait([leaving])

    assert amid == "falling_asleep", "the engine was told, and goes on"
    assert leaving.cancelled()
    assert (answer.state, answer.changed, engine.is_asleep) == ("awake", True, False)
    assert states == ["falling_asleep", "asleep", "waking", "awake"]


async def test_who_leaves_while_the_engine_wakes_leaves_a_worker_that_is_awake(
    sleeping: Sleeping, engine: Engine, states: list[SleepState]
) -> None:
    engine.may_change.set()
    await sleeping.sleep(0)
    engine.may_change.clear()
    leaving = asyncio.create_task(sleeping.wake())
    async with asyncio.timeout(60):
        assert [await engine.told.get() for _ in range(2)] == [True, False]
        leaving.cancel()
        engine.may_change.set()
        await asyncio.wait([leaving])

    assert leaving.cancelled()
    assert (sleeping.state, engine.is_asleep) == ("awake", False)
    assert states == ["falling_asleep", "asleep", "waking", "awake"]
