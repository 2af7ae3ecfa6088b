"""Clients that go away: whatever their request was doing, the engine drops it and its blocks come back."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

SLOW = ("--fake-decode-s-per-step", "0.02", "--fake-prefill-s-per-token", "0.001", "--max-num-seqs", "2")
LONG: dict[str, Any] = {"model": "tiny", "prompt": "fox " * 60, "max_tokens": 1500, "ignore_eos": True, "n": 2}


@pytest.fixture(scope="module")
def slow_worker(launch_in_module: Callable[..., Any]) -> Any:
    """Two rows, 50 steps a second: requests outlive their clients."""
    return launch_in_module("--served-model-name", "tiny", *SLOW).wait_until_ready()


@pytest.fixture
def state(slow_worker: Any, metric: Any) -> Callable[[], Any]:
    """(running, waiting, share of blocks in use)."""

    async def read() -> tuple[float, float, float]:
        return (
            await metric(slow_worker, "vllm:num_requests_running"),
            await metric(slow_worker, "vllm:num_requests_waiting"),
            await metric(slow_worker, "vllm:kv_cache_usage_perc"),
        )

    return read


async def test_a_running_stream_is_dropped(
    http: aiohttp.ClientSession, slow_worker: Any, eventually: Any, state: Any
) -> None:
    response = await http.post(f"{slow_worker.base}/v1/completions", json={**LONG, "stream": True})
    assert await response.content.readline()

    response.close()

    await eventually(state, (0, 0, 0))


async def send(http: aiohttp.ClientSession, worker: Any) -> int:
    async with http.post(f"{worker.base}/v1/completions", json=LONG) as response:
        return response.status


async def test_running_and_waiting_requests_in_one_go_are_dropped(
    http: aiohttp.ClientSession, slow_worker: Any, eventually: Any, state: Any
) -> None:
    async def busy() -> tuple[bool, bool]:
        running, waiting, _ = await state()
        return running > 0, waiting > 0

    posts = [asyncio.create_task(send(http, slow_worker)) for _ in range(3)]
    await eventually(busy, (True, True))

    for post in posts:
        post.cancel()
    await asyncio.gather(*posts, return_exceptions=True)

    await eventually(state, (0, 0, 0))


async def test_a_dropped_request_is_counted_and_logged_as_aborted(
    http: aiohttp.ClientSession, slow_worker: Any, eventually: Any, metric: Any
) -> None:
    async def aborted() -> float:
        return float(await metric(slow_worker, "vllm:request_success_total", finished_reason="abort"))

    before = await aborted()
    response = await http.post(
        f"{slow_worker.base}/v1/completions", json={**LONG, "stream": True}, headers={"X-Request-Id": "leaver"}
    )
    assert await response.content.readline()

    response.close()

    await eventually(aborted, before + 2)
    slow_worker.wait_for_log(r'event="request finished" request_id=leaver .*finish=abort')


async def test_twenty_that_leave_at_any_moment_leave_nothing_behind(
    http: aiohttp.ClientSession, slow_worker: Any, eventually: Any, state: Any
) -> None:
    for num_round_trips in range(20):
        leaving = asyncio.create_task(send(http, slow_worker))
        for _ in range(num_round_trips % 5):
            await state()

        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

    await eventually(state, (0, 0, 0))
