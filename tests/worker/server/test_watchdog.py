"""What hangs is found, shown and ended: real processes, real signals, and the reason where Kubernetes reads it."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BODY = {"model": "tiny", "prompt": "the fox", "max_tokens": 400, "ignore_eos": True}
Hanging = Callable[..., Any]


@pytest.fixture
def reason(tmp_path: Path) -> Path:
    """A termination log as a runtime mounts it."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


@pytest.fixture
def start(model_dir: Path, reason: Path, start_command: Callable[..., Any]) -> Hanging:
    """Starts workers that hang in the given way, until they are ready."""

    def begin(how: str, *flags: str) -> Any:
        script = Path(__file__).with_name("hanging_worker.py")
        command = [sys.executable, str(script), how, "--model", str(model_dir), "--fake", "--port", "0"]
        worker = start_command([*command, "--termination-log", str(reason), "--served-model-name", "tiny", *flags])
        return worker.wait_until_ready()

    return begin


def told(reason: Path) -> str:
    return reason.read_text()


def health_base(worker: Any) -> str:
    return f"http://127.0.0.1:{worker.wait_for_log(r'health_port=([0-9]+)')[1]}"


async def status(http: aiohttp.ClientSession, url: str) -> int:
    async with http.get(url) as response:
        return response.status


async def ended(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    end: asyncio.Future[bool] = loop.create_future()
    loop.add_reader(pidfd, end.set_result, True)
    async with asyncio.timeout(60):
        await end
    loop.remove_reader(pidfd)
    os.close(pidfd)


@pytest.mark.parametrize(("how", "function"), [("waits", "hang_waiting"), ("keeps the lock", "hang_with_the_lock")])
async def test_a_step_that_hangs_ends_both_processes_with_its_stack_and_its_reason(
    http: aiohttp.ClientSession, start: Hanging, reason: Path, how: str, function: str
) -> None:
    worker = start(how, "--step-timeout", "1")

    async with http.post(f"{worker.base}/v1/completions", json=BODY) as response:
        error = (await response.json())["error"]
    code = await asyncio.to_thread(worker.wait)

    assert (response.status, error["code"]) == (503, "engine_dead")
    assert code == 1
    assert f"in {function}" in worker.log
    assert "the log has the stacks" in told(reason)
    assert "the fox" not in worker.log + told(reason)


async def test_a_stopped_engine_is_unhealthy_until_it_goes_on(
    http: aiohttp.ClientSession, start: Hanging, eventually: Any
) -> None:
    worker = start("loop waits", "--step-timeout", "600", "--health-timeout", "4")
    probes, engine = health_base(worker), worker.engine_pid()
    await eventually(lambda: status(http, f"{probes}/health"), 200)

    os.kill(engine, signal.SIGSTOP)
    await eventually(lambda: status(http, f"{probes}/health"), 503)
    on_main_port = await status(http, f"{worker.base}/health")
    os.kill(engine, signal.SIGCONT)

    assert on_main_port == 503
    await eventually(lambda: status(http, f"{probes}/health"), 200)


async def test_a_stopped_engine_is_the_end_after_a_while(start: Hanging, reason: Path) -> None:
    worker = start("loop waits", "--step-timeout", "2")

    os.kill(worker.engine_pid(), signal.SIGSTOP)
    code = await asyncio.to_thread(worker.wait)

    assert code == 1
    assert "the engine has been silent" in told(reason)


HANGING_LOOPS = pytest.mark.parametrize(("how", "function"), [("loop spins", "spin_for_ever"), ("loop waits", "wait")])


@HANGING_LOOPS
async def test_an_event_loop_that_hangs_is_told_by_the_health_port(
    http: aiohttp.ClientSession, start: Hanging, eventually: Any, how: str, function: str
) -> None:
    del function
    worker = start(how, "--step-timeout", "600", "--health-timeout", "7")
    probes = health_base(worker)

    worker.process.send_signal(signal.SIGUSR1)
    while_it_is_fresh = [await status(http, f"{probes}{path}") for path in ("/ready", "/health", "/metrics")]
    await eventually(lambda: status(http, f"{probes}/ready"), 503)
    await eventually(lambda: status(http, f"{probes}/health"), 503)
    async with http.get(f"{probes}/health") as response:
        error = (await response.json())["error"]

    assert while_it_is_fresh == [200, 200, 200]
    assert "event loop has stood still" in error["message"]


@HANGING_LOOPS
async def test_an_event_loop_that_hangs_is_the_end_of_both_processes(
    start: Hanging, reason: Path, how: str, function: str
) -> None:
    worker = start(how, "--step-timeout", "3")
    engine = os.pidfd_open(worker.engine_pid())

    worker.process.send_signal(signal.SIGUSR1)
    code = await asyncio.to_thread(worker.wait)
    await ended(engine)

    assert code == 4
    assert f"in {function}" in worker.log
    assert "the server's event loop has stood still" in told(reason)


async def test_a_pause_of_the_whole_worker_is_no_hang(http: aiohttp.ClientSession, start: Hanging) -> None:
    worker = start("loop waits", "--step-timeout", "1.5", "--health-timeout", "60")
    engine = worker.engine_pid()

    for pid in (worker.process.pid, engine):  # a worker that runs beside its stopped engine ends it, rightly
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.5):
            await asyncio.Event().wait()
    for pid in (engine, worker.process.pid):
        os.kill(pid, signal.SIGCONT)
    async with http.post(f"{worker.base}/v1/completions", json={**BODY, "max_tokens": 3}) as response:
        answered = response.status

    assert answered == 200


async def test_the_health_port_serves_probes_and_nothing_else(http: aiohttp.ClientSession, start: Hanging) -> None:
    probes = health_base(start("loop waits"))

    seen = {
        path: await status(http, probes + path) for path in ("/health", "/ready", "/metrics", "/v1/models", "/version")
    }
    async with http.get(f"{probes}/v1/models") as response:
        error = (await response.json())["error"]

    assert seen == {"/health": 200, "/ready": 200, "/metrics": 200, "/v1/models": 404, "/version": 404}
    assert error.keys() == {"message", "type", "param", "code"}
