"""What the user sees: a table on a terminal, lines elsewhere, and no end of the run when nobody is there to see it."""

import io
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from quire_cli.local.pod import Pod, PodState
from quire_cli.local.pod_plan import PodPlan, Probe
from quire_cli.local.progress import LiveProgress, PlainProgress, progress_for, say

PROBE = Probe(url="http://127.0.0.1:9/", period_s=1, timeout_s=1, max_failures=1)
PLAN = PodPlan(
    name="demo-0",
    role="worker",
    service="demo",
    argv=(),
    environ={},
    readiness=PROBE,
    liveness=PROBE,
    start_timeout_s=1,
    grace_s=1,
    endpoint=None,
)


class Silent:
    """Hears about changes and does nothing."""

    def pod_changed(self, pod: Pod, state: PodState, detail: str) -> None:
        """Called by the pod."""


@pytest.fixture
async def pod(tmp_path: Path) -> Pod:
    """A pod that was never started."""
    async with aiohttp.ClientSession() as http:
        return Pod(PLAN, log=tmp_path / "log", cwd=tmp_path, http=http, listener=Silent())


async def test_a_terminal_shows_a_table_until_all_are_ready_then_lines(pod: Pod) -> None:
    output = io.StringIO()
    progress = progress_for(Console(file=output, force_terminal=True, width=100))

    progress.begin(1)
    progress.pod_changed(pod, PodState.STARTING, "pid 7")
    progress.note("demo: 0 -> 1 workers [Activated]")
    progress.all_ready()
    progress.pod_changed(pod, PodState.RESTARTING, "exit code 1")
    progress.close()

    assert isinstance(progress, LiveProgress)
    assert all(part in output.getvalue() for part in ("RESTARTS", "demo-0", "pid 7", "1 workers [Activated]"))
    assert output.getvalue().endswith("demo-0: restarting (exit code 1)\n")


async def test_elsewhere_each_change_is_a_line(pod: Pod) -> None:
    output = io.StringIO()
    progress = progress_for(Console(file=output))

    progress.begin(1)
    progress.pod_changed(pod, PodState.READY, "after 2.0 s")
    progress.begin(0)

    assert isinstance(progress, PlainProgress)
    lines = [line.partition("] ")[2] for line in output.getvalue().splitlines()]
    assert lines == ["starting 1 worker and the router", "demo-0: ready (after 2.0 s)", "starting the router"]


class Gone(io.StringIO):
    """A pipe whose reader is gone."""

    def write(self, text: str) -> int:
        """What the system says then."""
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_that_is_gone_is_no_error() -> None:
    say(Console(file=Gone()), "ready")
