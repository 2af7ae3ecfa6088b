"""How long a model at zero takes to answer, under `quire up`: from the first request to the decision, the process, readiness, the token.

    python bench/scale_from_zero.py [--cycles N] [--burst N] [--cooldown S]

Each cycle sends a burst of streams to a model without a worker, waits for all answers, and then until the service sleeps again and no
worker process is left. Times are those of the wall clock, in seconds since the first request was sent. The last line tells what stayed:
processes, file descriptors, folders and memory of the supervisor, after the first cycle and after the last one.
"""

import argparse
import asyncio
import datetime
import json
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

EXAMPLE = Path(__file__).parents[1] / "examples" / "scale-to-zero.yaml"
PHASES = ("decided", "process started", "worker ready", "first token", "burst answered", "at zero again")
POLL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Left:
    """What the supervisor has while the service sleeps."""

    processes: int
    descriptors: int
    folders: int
    mib: float


class Up:
    """A running `quire up`, with when each line came."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[tuple[float, str]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while raw := await self.process.stdout.readline():
            self.lines.append((time.time(), raw.decode().rstrip()))

    async def line(self, pattern: str, since_s: float = 0.0, limit_s: float = 120.0) -> tuple[float, "re.Match[str]"]:
        """When the first line after `since_s` came that matches."""
        async with asyncio.timeout(limit_s):
            while True:
                for at_s, line in self.lines:
                    if at_s >= since_s and (match := re.search(pattern, line)):
                        return at_s, match
                if self.process.returncode is not None:
                    raise RuntimeError("\n".join(line for _, line in self.lines))
                await asyncio.sleep(POLL_S)

    async def sleeps(self) -> None:
        """No worker process is left."""
        me = psutil.Process(self.process.pid)
        while True:
            if len(me.children()) <= 1:
                return
            await asyncio.sleep(POLL_S)

    def left(self, folder: Path) -> Left:
        """What it has now."""
        me = psutil.Process(self.process.pid)
        return Left(
            processes=len(me.children(recursive=True)),
            descriptors=me.num_fds(),
            folders=len(list((folder / "pods").iterdir())),
            mib=me.memory_info().rss / 2**20,
        )

    async def stop(self) -> None:
        """Ends it."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        await self.process.wait()
        await self._reader


async def first_token_s(http: aiohttp.ClientSession, url: str) -> tuple[float, float]:
    """When the first token of one stream came, and its end. RuntimeError if it has none, or was cut."""
    body = {"model": "sleepy", "messages": [{"role": "user", "content": "What is 12 + 30?"}], "stream": True}
    first_s, text = 0.0, ""
    async with http.post(f"{url}/chat/completions", json=body) as answer:
        async for line in answer.content:
            text += line.decode()
            if not first_s and line.startswith(b"data: ") and b'"content":' in line:
                first_s = time.time()
    if answer.status != 200 or not first_s or not text.rstrip().endswith("data: [DONE]"):
        raise RuntimeError(f"a request was lost: status {answer.status}, {text[-300:]}")
    return first_s, time.time()


async def cycle(up: Up, http: aiohttp.ClientSession, url: str, folder: Path, burst: int) -> list[float]:
    """Seconds of PHASES since the first request."""
    begun_s = time.time()
    asked = [asyncio.create_task(first_token_s(http, url)) for _ in range(burst)]
    process_s, _ = await up.line(r"worker-\w+-\d+: starting \(pid \d+\)", begun_s)
    ready_s, _ = await up.line(r"worker-\w+-\d+: ready", begun_s)
    answers = await asyncio.gather(*asked)
    decided = next(one for one in reversed(decisions(folder)) if _unix(one["at"]) >= begun_s - 0.001)
    zero_s, _ = await up.line(r"-> 0 workers", begun_s)
    await up.sleeps()
    moments = [_unix(decided["at"]), process_s, ready_s, min(answers)[0], max(end_s for _, end_s in answers), zero_s]
    return [at_s - begun_s for at_s in moments]


def decisions(folder: Path) -> list[dict[str, Any]]:
    """Of the run, newest first."""
    history: list[dict[str, Any]] = json.loads((folder / "scaling.json").read_text())["services"]["default/sleepy"][
        "history"
    ]
    return history


def _unix(at: str) -> float:
    return datetime.datetime.fromisoformat(at).timestamp()


def manifest(folder: Path, cooldown_s: int) -> Path:
    """The example with a shorter cooldown."""
    document = yaml.safe_load(EXAMPLE.read_text())
    document["spec"]["model"]["uri"] = f"file://{EXAMPLE.parent / 'models' / 'quire-demo'}"
    document["spec"]["scaling"]["cooldownSeconds"] = cooldown_s
    document["spec"]["scaling"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 0
    path = folder / "sleepy.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


async def measure(options: argparse.Namespace) -> tuple[list[list[float]], list[Left]]:
    """Phases of each cycle, and what was left after it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quire = Path(sys.executable).with_name("quire")
        process = await asyncio.create_subprocess_exec(
            str(quire), "up", str(manifest(folder, options.cooldown)), "--port", "0",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "TMPDIR": name},
        )  # fmt: skip
        up = Up(process)
        try:
            _, ready = await up.line(r"^ready: (http://\S+/v1) ")
            _, told = await up.line(r"decisions: (\S+)/scaling.json")
            run = Path(told[1])
            phases, left = [], []
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
                for _ in range(options.cycles):
                    phases.append(await cycle(up, http, ready[1], run, options.burst))
                    left.append(up.left(run))
        finally:
            await up.stop()
        return phases, left


def main() -> None:
    """Console script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=5, help="from zero and back (default %(default)s)")
    parser.add_argument("--burst", type=int, default=8, help="streams at once (default %(default)s)")
    parser.add_argument("--cooldown", type=int, default=2, help="cooldownSeconds (default %(default)s)")
    options = parser.parse_args()
    phases, left = asyncio.run(measure(options))
    print(f"{options.cycles} cycles, {options.burst} streams each, {os.cpu_count()} cores, {platform.processor()}")
    print("\n| since the first request, in s | median | least | most |\n| --- | --- | --- | --- |")
    for number, phase in enumerate(PHASES):
        values = [one[number] for one in phases]
        print(f"| {phase} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    print(f"\nafter the first cycle: {left[0]}\nafter the last cycle:  {left[-1]}")


if __name__ == "__main__":
    main()
