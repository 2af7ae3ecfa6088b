"""Starting, draining, dying: what a platform sees of a worker process, over real sockets and signals."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quire_worker.config import WorkerConfig
from quire_worker.errors import QuireWorkerError
from quire_worker.server.worker import Worker

BODY = {"model": "tiny", "prompt": "the fox", "max_tokens": 400, "seed": 1, "ignore_eos": True}
SLOW = ("--fake-decode-s-per-step", "0.01")
STUB = Path(__file__).with_name("stub_engine.py")


async def events_of(response: aiohttp.ClientResponse) -> list[Any]:
    """The data of all events of a stream: JSON, or the text [DONE]."""
    body = (await response.read()).decode()
    data = [event.removeprefix("data: ") for event in body.lstrip().split("\n\n") if event]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


@asynccontextmanager
async def in_process(model_dir: Path, behaviour: str, **changes: Any) -> AsyncIterator[tuple[str, "asyncio.Task[int]"]]:
    """A worker in this process whose engine is the stub; where it listens, and its run."""
    config = WorkerConfig(model=model_dir, port=0, **changes)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        worker = Worker(config, None, listening, "test", engine_command=(sys.executable, str(STUB), behaviour))
        running = asyncio.create_task(worker.run())
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", running
        finally:
            running.cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()


async def status(http: aiohttp.ClientSession, url: str) -> int:
    async with http.get(url) as response:
        return response.status


async def test_while_loading_it_is_alive_but_not_ready(http: aiohttp.ClientSession, model_dir: Path) -> None:
    async with in_process(model_dir, "never ready") as (base, _):
        health = await status(http, f"{base}/health")
        ready = await http.get(f"{base}/ready")
        refused = await http.post(f"{base}/v1/completions", json=BODY)
        error = (await ready.json())["error"]

        assert health == 200
        assert ready.status == 503
        assert "loading" in error["message"]
        assert refused.status == 503
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert refused.headers["x-quire-reason"] == "not_ready"


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("fatal at start", "model.safetensors: missing"), ("exits at start", "exit code 5")]
)
async def test_an_engine_that_cannot_start_ends_the_worker_with_its_reason(
    model_dir: Path, behaviour: str, reason: str
) -> None:
    async with asyncio.timeout(120), in_process(model_dir, behaviour) as (_, running):
        with pytest.raises(QuireWorkerError, match=reason):
            await running


async def test_a_full_queue_is_429_with_retry_after(
    http: aiohttp.ClientSession, model_dir: Path, eventually: Any
) -> None:
    async with in_process(model_dir, "queue full") as (base, _):
        await eventually(lambda: status(http, f"{base}/ready"), 200)

        responses = [
            await http.post(f"{base}/v1/completions", json={**BODY, "model": "tiny", "stream": s})
            for s in (False, True)
        ]

        for response in responses:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            assert (await response.json())["error"]["code"] == "queue_full"


@asynccontextmanager
async def stream_and_second(
    http: aiohttp.ClientSession, base: str
) -> AsyncIterator[tuple[aiohttp.ClientResponse, aiohttp.ClientResponse]]:
    """A stream that has begun, and the answer to a request sent after."""
    async with asyncio.timeout(120):
        streamed = await http.post(f"{base}/v1/completions", json={**BODY, "stream": True})
        assert (await streamed.content.readline()).startswith(b"data: {")
        async with http.post(f"{base}/v1/completions", json=BODY) as second:
            yield streamed, second


async def test_prompts_beyond_the_queue_are_refused_together_and_leave_nothing_behind(
    http: aiohttp.ClientSession, launch: Callable[..., Any], metric: Any, eventually: Any
) -> None:
    worker = launch(
        "--served-model-name", "tiny", "--max-num-seqs", "1", "--max-num-queued-reqs", "2", *SLOW
    ).wait_until_ready()

    refused = await http.post(f"{worker.base}/v1/completions", json={**BODY, "prompt": ["a", "b", "c", "d", "e"]})
    following = await http.post(f"{worker.base}/v1/completions", json={**BODY, "max_tokens": 2})

    assert refused.status == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert following.status == 200
    assert await metric(worker, "vllm:admission_rejections_total", reason="queue_full") == 1
    await eventually(lambda: metric(worker, "vllm:kv_cache_usage_perc"), 0)


async def test_a_request_that_the_engine_fails_is_500_or_an_event_and_tells_no_insides(
    http: aiohttp.ClientSession, model_dir: Path, eventually: Any
) -> None:
    async with in_process(model_dir, "fails requests") as (base, _):
        await eventually(lambda: status(http, f"{base}/ready"), 200)

        async with stream_and_second(http, base) as (streamed, second):
            events = await events_of(streamed)
            text = await second.text()
        health = await status(http, f"{base}/health")

        assert second.status == 500
        assert events[-2]["error"]["code"] == "internal_error"
        assert events[-1] == "[DONE]"
        assert "secret insides" not in text + json.dumps(events)
        assert health == 200


async def test_a_grammar_that_fails_under_way_is_400_or_an_event_and_says_why(
    http: aiohttp.ClientSession, model_dir: Path, eventually: Any
) -> None:
    async with in_process(model_dir, "blames grammars") as (base, _):
        await eventually(lambda: status(http, f"{base}/ready"), 200)

        async with stream_and_second(http, base) as (streamed, second):
            events = await events_of(streamed)
            error = (await second.json())["error"]

        assert (second.status, error["type"], error["message"]) == (400, "invalid_request_error", "takes too long")
        assert events[-2]["error"]["message"] == "takes too long"
        assert events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("dies", "SIGKILL"), ("is fatal", "the device is lost"), ("speaks nonsense", "cannot be read")],
)
async def test_a_lost_engine_ends_streams_with_an_error_event_and_the_worker_with_1(
    http: aiohttp.ClientSession, model_dir: Path, eventually: Any, behaviour: str, reason: str
) -> None:
    async with in_process(model_dir, behaviour) as (base, running):
        await eventually(lambda: status(http, f"{base}/ready"), 200)

        async with stream_and_second(http, base) as (streamed, second):
            events = await events_of(streamed)
        code = await running

        assert second.status == 503
        assert events[-2]["error"]["code"] == "engine_dead"
        assert reason in events[-2]["error"]["message"]
        assert events[-1] == "[DONE]"
        assert code == 1


async def test_a_load_that_stands_still_is_unhealthy(
    http: aiohttp.ClientSession, model_dir: Path, eventually: Any
) -> None:
    async with in_process(model_dir, "never ready", load_timeout_s=0.5) as (base, _):
        await eventually(lambda: status(http, f"{base}/health"), 503)

        assert await status(http, f"{base}/ready") == 503


async def test_an_engine_with_work_but_no_steps_is_unhealthy(
    http: aiohttp.ClientSession, model_dir: Path, eventually: Any
) -> None:
    async with in_process(model_dir, "silent", health_timeout_s=2.0) as (base, _):
        await eventually(lambda: status(http, f"{base}/ready"), 200)

        await eventually(lambda: status(http, f"{base}/health"), 503)


async def test_sigterm_lets_running_requests_finish_refuses_new_ones_and_exits_0(
    http: aiohttp.ClientSession, launch: Callable[..., Any], eventually: Any
) -> None:
    worker = launch("--served-model-name", "tiny", *SLOW).wait_until_ready()
    running = await http.post(f"{worker.base}/v1/completions", json={**BODY, "max_tokens": 250, "stream": True})
    assert await running.content.readline()

    with worker.engine_held():
        worker.process.send_signal(signal.SIGTERM)
        await eventually(lambda: status(http, f"{worker.base}/ready"), 503)
        late = await http.post(f"{worker.base}/v1/completions", json=BODY)
    events = await events_of(running)

    assert late.status == 503
    assert late.headers["Connection"] == "close"
    assert (late.headers["x-quire-reason"], late.headers["Retry-After"]) == ("draining", "1")
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert await asyncio.to_thread(worker.wait) == 0


async def test_a_drain_that_takes_too_long_ends_streams_with_an_error_and_exits_0(
    http: aiohttp.ClientSession, launch: Callable[..., Any]
) -> None:
    worker = launch("--served-model-name", "tiny", *SLOW, "--drain-timeout", "0.1").wait_until_ready()
    running = await http.post(f"{worker.base}/v1/completions", json={**BODY, "max_tokens": 1900, "stream": True})
    assert await running.content.readline()

    worker.process.send_signal(signal.SIGTERM)
    events = await events_of(running)

    assert events[-2]["error"]["code"] == "draining"
    assert events[-1] == "[DONE]"
    assert await asyncio.to_thread(worker.wait) == 0


async def test_a_second_sigterm_does_not_wait(http: aiohttp.ClientSession, launch: Callable[..., Any]) -> None:
    worker = launch("--served-model-name", "tiny", *SLOW, "--drain-timeout", "600").wait_until_ready()
    running = await http.post(f"{worker.base}/v1/completions", json={**BODY, "max_tokens": 1900, "stream": True})
    assert await running.content.readline()

    worker.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(worker.wait_for_log, "event=draining")
    worker.process.send_signal(signal.SIGTERM)
    events = await events_of(running)

    assert events[-2]["error"]["code"] == "draining"
    assert await asyncio.to_thread(worker.wait) == 0


async def test_a_killed_engine_fails_requests_with_503_and_the_worker_exits_1(
    http: aiohttp.ClientSession, launch: Callable[..., Any], metric: Any, eventually: Any
) -> None:
    worker = launch("--served-model-name", "tiny", *SLOW).wait_until_ready()
    streamed = await http.post(f"{worker.base}/v1/completions", json={**BODY, "max_tokens": 1900, "stream": True})
    assert await streamed.content.readline()
    whole = asyncio.create_task(
        http.post(f"{worker.base}/v1/completions", json={**BODY, "max_tokens": 1900}).__aenter__()
    )
    await eventually(lambda: metric(worker, "vllm:num_requests_running"), 2)

    os.kill(worker.engine_pid(), signal.SIGKILL)
    events = await events_of(streamed)
    response = await whole

    assert events[-2]["error"]["code"] == "engine_dead"
    assert response.status == 503
    assert response.headers["x-quire-reason"] == "engine_dead"
    assert await asyncio.to_thread(worker.wait) == 1
    assert "SIGKILL" in worker.log


async def test_when_the_api_process_is_killed_the_engine_ends_too(launch: Callable[..., Any]) -> None:
    worker = launch().wait_until_ready()
    engine = os.pidfd_open(worker.engine_pid())

    worker.process.send_signal(signal.SIGKILL)
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(engine, ended.set_result, True)

    async with asyncio.timeout(60):
        await ended
    loop.remove_reader(engine)
    os.close(engine)


async def test_a_drain_by_request_can_be_undone(http: aiohttp.ClientSession, launch: Callable[..., Any]) -> None:
    worker = launch("--served-model-name", "tiny").wait_until_ready()

    drained = await http.post(f"{worker.base}/internal/drain")
    refused = await http.post(f"{worker.base}/v1/completions", json=BODY)
    undone = await http.delete(f"{worker.base}/internal/drain")
    taken = await http.post(f"{worker.base}/v1/completions", json=BODY)

    assert (await drained.json()) == {"draining": True, "num_requests": 0}
    assert refused.status == 503
    assert (await undone.json())["draining"] is False
    assert taken.status == 200


def test_a_port_in_use_is_named_before_anything_is_loaded(launch: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        worker = launch("--port", str(port))
        code = worker.wait()

    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port" in worker.log
    assert "event=" not in worker.log


def test_a_folder_without_a_tokenizer_is_named(launch: Callable[..., Any], tmp_path: Path) -> None:
    worker = launch(model=tmp_path)

    assert worker.wait() == 2
    assert str(tmp_path / "tokenizer.json") in worker.log
    assert "Traceback" not in worker.log


def test_settings_that_exclude_each_other_are_named_by_flag(launch: Callable[..., Any]) -> None:
    worker = launch("--max-num-seqs", "64", "--max-num-batched-tokens", "32")

    assert worker.wait() == 2
    assert "--max-num-batched-tokens (32) must be at least --max-num-seqs (64)" in worker.log


def test_the_api_process_imports_no_torch() -> None:
    code = (
        "import sys, quire_worker.__main__; sys.exit(any(m.split('.')[0] in ('torch', 'triton') for m in sys.modules))"
    )

    process = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code])

    assert process == 0
