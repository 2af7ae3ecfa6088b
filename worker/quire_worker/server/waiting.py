"""Small helpers to wait for the first of several things."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first(*waits: Coroutine[Any, Any, object], timeout_s: float | None = None) -> None:
    """Until one of `waits` is over, or the time is; the others are cancelled. What they return or raise is not looked at."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settled(future: "asyncio.Future[Any]") -> None:
    """Until `future` is done, well or not. Cancelling this leaves the future alone."""
    await asyncio.wait([future])


async def cancelled(task: "asyncio.Task[Any]") -> None:
    """Cancel `task` and wait for its end, however it ends."""
    task.cancel()
    await asyncio.wait([task])
