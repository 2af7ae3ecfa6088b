"""One pod as a local process: restarts, giving up, the grace period."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from quire_cli.local.child import Child
from quire_cli.local.pod import Pod, PodFailedError, PodState, RestartPolicy
from quire_cli.local.pod_plan import LOOPBACK, PodPlan, Probe
from quire_cli.local.ports import free_ports

QUICK = RestartPolicy(first_delay_s=0.01, max_delay_s=0.02, max_starts_unready=3)
SERVES_UNTIL_SIGTERM = """
import http.server, signal, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
threading.Thread(target=server.serve_forever, daemon=True).start()
asked.wait()
server.shutdown()
server.server_close()
threading.Event().wait(0.5)  # its last streams
print("ended well", flush=True)
"""
UNANSWERED = Probe(url="http://127.0.0.1:9/ready", period_s=1, timeout_s=1, max_failures=1)


class Recorder:
    """Keeps what a pod reports; calls back on a state."""

    def __init__(self) -> None:
        self.seen: list[tuple[PodState, str]] = []
        self.on_starting: Callable[[Pod], None] = lambda pod: None
        self.on_ready: Callable[[Pod], None] = lambda pod: None

    def pod_changed(self, pod: Pod, state: PodState, detail: str) -> None:
        """Called by the pod."""
        self.seen.append((state, detail))
        if state is PodState.STARTING:
            self.on_starting(pod)
        elif state is PodState.READY:
            self.on_ready(pod)

    def times(self, state: PodState) -> int:
        """How often a state was reported."""
        return sum(seen is state for seen, _ in self.seen)


Make = Callable[..., tuple[Pod, Recorder]]


@pytest.fixture
async def make_pod(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes a pod that runs a Python program; without `probe`, one that is never answered."""
    async with aiohttp.ClientSession() as http:

        def make(
            program: str, *, grace_s: float = 5, start_timeout_s: float = 60, probe: Probe = UNANSWERED
        ) -> tuple[Pod, Recorder]:
            plan = PodPlan(
                name="pod",
                role="worker",
                service="demo",
                argv=(sys.executable, "-c", program),
                environ={},
                readiness=probe,
                liveness=probe,
                start_timeout_s=start_timeout_s,
                grace_s=grace_s,
                endpoint=None,
            )
            recorder = Recorder()
            return Pod(
                plan, log=tmp_path / "pod.log", cwd=tmp_path, http=http, listener=recorder, policy=QUICK
            ), recorder

        yield make


async def test_a_pod_that_keeps_crashing_before_it_was_ever_ready_is_given_up(make_pod: Make) -> None:
    pod, recorder = make_pod("print('boom'); raise SystemExit(3)")

    with pytest.raises(PodFailedError) as caught:
        await pod.run()

    assert recorder.times(PodState.STARTING) == 3
    assert (caught.value.reason, caught.value.tail) == ("exit code 3, 3 times in a row", ["boom"])


async def test_a_pod_that_says_that_its_configuration_is_wrong_is_not_restarted(
    make_pod: Make,
) -> None:
    pod, recorder = make_pod("raise SystemExit(2)")

    with pytest.raises(PodFailedError):
        await pod.run()

    assert recorder.times(PodState.STARTING) == 1


async def test_a_pod_that_never_becomes_ready_is_killed_after_its_start_timeout(
    make_pod: Make,
) -> None:
    pod, recorder = make_pod("import signal; signal.pause()", start_timeout_s=0.01)

    with pytest.raises(PodFailedError) as caught:
        await pod.run()

    assert caught.value.reason.startswith("killed by signal 9")
    assert (PodState.NOT_READY, "not ready after 0.01 s; killed") in recorder.seen


async def test_a_process_that_does_not_take_sigterm_is_killed_after_its_grace_period(tmp_path: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:  # a blocked signal stays blocked in the child, from its first instruction on
        program = [sys.executable, "-c", "import signal; signal.pause()"]
        child = await Child.start(program, {}, tmp_path / "log", tmp_path)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    code = await child.stop(grace_s=0.1)

    assert code == -signal.SIGKILL


async def test_a_pod_that_is_stopped_is_not_started_again(make_pod: Make) -> None:
    pod, recorder = make_pod("import signal; signal.pause()")
    stopping = []

    recorder.on_starting = lambda started: stopping.append(asyncio.ensure_future(started.stop()))
    await pod.run()
    await asyncio.gather(*stopping)

    assert recorder.seen[-1][0] is PodState.STOPPED
    assert recorder.times(PodState.RESTARTING) == 0


async def test_a_stopping_pod_that_has_closed_its_port_keeps_its_grace_period(make_pod: Make, tmp_path: Path) -> None:
    port = next(free_ports(LOOPBACK))
    probe = Probe(url=f"http://{LOOPBACK}:{port}/health", period_s=0.02, timeout_s=30, max_failures=2)
    pod, recorder = make_pod(SERVES_UNTIL_SIGTERM.replace("PORT", str(port)), grace_s=20, probe=probe)
    stopping = []

    recorder.on_ready = lambda ready: stopping.append(asyncio.ensure_future(ready.stop()))
    await pod.run()
    await asyncio.gather(*stopping)

    assert "ended well" in (tmp_path / "pod.log").read_text()
    assert recorder.times(PodState.NOT_READY) == 0
