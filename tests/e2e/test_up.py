"""`quire up examples/quickstart.yaml` with the real router, real workers and the demo model: serving, a killed worker, the end."""

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

pytestmark = pytest.mark.timeout(900)

REPOSITORY = Path(__file__).parents[2]
MAX_KILLS = 5
QUICKSTART = REPOSITORY / "examples" / "quickstart.yaml"
BODY = {
    "model": "quire-demo",
    "messages": [{"role": "user", "content": "What is 12 + 30?"}],
    "temperature": 0,
    "max_tokens": 16,
}


class Up:
    """A running `quire up`."""

    def __init__(self, process: asyncio.subprocess.Process, http: aiohttp.ClientSession) -> None:
        self.process = process
        self.http = http
        self.output = ""
        self.base = ""

    async def wait_for(self, pattern: str, timeout_s: float = 240) -> "re.Match[str]":
        """The first line from here on that matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_s):
            while raw := await self.process.stdout.readline():
                line = raw.decode()
                self.output += line
                if match := re.search(pattern, line):
                    return match
        raise AssertionError(f"no {pattern!r} in:\n{self.output}")

    async def end(self) -> int:
        """The exit code."""
        rest, _ = await asyncio.wait_for(self.process.communicate(), 180)
        self.output += rest.decode()
        assert self.process.returncode is not None
        return self.process.returncode

    async def chat(self, **more: Any) -> tuple[int, Any]:
        """Status and body of one chat."""
        async with self.http.post(f"{self.base}/v1/chat/completions", json={**BODY, **more}) as answer:
            return answer.status, await answer.json()

    async def endpoints(self) -> dict[str, dict[str, Any]]:
        """The router's endpoints as it sees them, by pod."""
        async with self.http.get(f"{self.base}/debug/route") as answer:
            return {entry["id"]: entry for entry in (await answer.json())["endpoints"]}

    def family(self) -> list[psutil.Process]:
        """Every process below it."""
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    """The quickstart, ready."""
    quire = Path(sys.executable).with_name("quire")
    process = await asyncio.create_subprocess_exec(
        str(quire), "up", str(QUICKSTART), "--port", "0", "--log-dir", str(tmp_path / "logs"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    family: list[psutil.Process] = []
    async with aiohttp.ClientSession() as http:
        running = Up(process, http)
        try:
            running.base = (await running.wait_for(r"^ready: (http://\S+)/v1 "))[1]
            family = running.family()
            yield running
        finally:
            if process.returncode is None:
                family = [*family, *running.family()]
                process.kill()
            for left in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            await process.communicate()  # to the end of its output, also where it was killed: else its pipe stays open


async def killed(up: Up, victim: str) -> float:
    """Kills a worker; the seconds until the router counts on it no more."""
    loop = asyncio.get_running_loop()
    psutil.Process(int(re.findall(rf"{victim}: starting \(pid (\d+)\)", up.output)[-1])).kill()
    killed_s = loop.time()
    await up.wait_for(rf"{victim}: restarting \(killed by signal 9")
    async with asyncio.timeout(60):
        while (await up.endpoints()).get(victim, {}).get("ready"):
            pass
    return loop.time() - killed_s


async def test_a_killed_worker_costs_no_request_and_the_end_leaves_nothing(up: Up) -> None:
    status, body = await up.chat()
    assert status == 200
    assert body["choices"][0]["message"]["content"]
    victim = next(iter(await up.endpoints()))
    first_family = up.family()

    load = [asyncio.create_task(up.chat(max_tokens=48, ignore_eos=True)) for _ in range(24)]
    while not (await up.endpoints())[victim]["in_flight"]:
        assert not any(task.done() for task in load)
    gone_after_s = [await killed(up, victim)]
    answers = await asyncio.wait_for(asyncio.gather(*load), 180)
    await up.wait_for(rf"{victim}: ready")
    while min(gone_after_s) >= 1.0 and len(gone_after_s) < MAX_KILLS:  # the machine had other things to do
        gone_after_s.append(await killed(up, victim))
        await up.wait_for(rf"{victim}: ready")

    assert [status for status, _ in answers] == [200] * len(load)
    assert min(gone_after_s) < 1.0
    family = [*first_family, *up.family()]
    up.process.send_signal(signal.SIGINT)
    assert await up.end() == 0
    assert not psutil.wait_procs(family, timeout=60)[1]


async def test_no_process_outlives_a_supervisor_that_is_killed(up: Up) -> None:
    family = up.family()

    up.process.kill()
    await up.process.wait()

    assert len(family) >= 5, "a router, and two workers with their engines"
    assert not psutil.wait_procs(family, timeout=60)[1]


async def test_a_model_with_a_corrupt_file_ends_the_command_and_names_it(tmp_path: Path) -> None:
    source = REPOSITORY / "examples" / "models" / "quire-demo"
    model = tmp_path / "broken"
    model.mkdir()
    for file in source.iterdir():
        content = file.read_bytes()
        (model / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    manifest = tmp_path / "broken.yaml"
    manifest.write_text(QUICKSTART.read_text().replace("file://./models/quire-demo", "file:broken"))

    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("quire")), "up", str(manifest), "--port", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 240)

    assert process.returncode == 1
    assert re.search(r"error: quire-demo-worker-\w+-\d cannot start \(exit code 2\); it said:", output.decode())
    assert f"{model.name}/model.safetensors" in output.decode()
