"""What clients that hardly read cost the others: 200 streams read at a byte a second, and quick requests beside them.

    python bench/router_slow.py [--slow 200] [--rounds 3] [--requests 400] [--json FILE]

A router process; its worker, in this process, pours events without end into the slow streams and answers the others at once. In each round
the same quick requests are sent twice, in turn: without and with the slow readers. A slow reader is stuck once the worker has not been able
to write to it for a second. How much that takes (`sent_kib`: least, median, most) is what the sockets' buffers on both hops and the router
hold: 5 MiB of each stream with Linux' defaults, so an answer that is smaller is never stuck, however slowly it is read.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config  # noqa: E402

BODY = b'{"model":"m","prompt":"x","stream":true,"user":"%s"}'
EVENT = b"data: " + b"x" * 500 + b"\n\n"
FLOOD = b"data: " + b"x" * 32_000 + b"\n\n"
QUICK = EVENT * 20 + b"data: [DONE]\n\n"
STUCK_S = 1.0
POLL_S = 0.1
START_S = 60.0
STUCK_WITHIN_S = 120.0


class Worker:
    """Pours into slow streams, answers others."""

    def __init__(self) -> None:
        self.sent: dict[int, int] = {}
        self.moved_s: dict[int, float] = {}

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/ready":
            return web.Response()
        if request.path.startswith("/internal"):
            return web.Response(status=404)
        is_slow = b'"slow"' in await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if not is_slow:
            await response.write(QUICK)
            return response
        number = len(self.sent)
        self.sent[number], self.moved_s[number] = 0, time.monotonic()
        while True:
            await response.write(FLOOD)
            self.sent[number] += len(FLOOD)
            self.moved_s[number] = time.monotonic()
            await asyncio.sleep(0)

    def num_stuck(self) -> int:
        now_s = time.monotonic()
        return sum(now_s - moved_s >= STUCK_S for moved_s in self.moved_s.values())


async def slow_reader(url: str) -> None:
    """Reads a byte a second until it is cancelled."""
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    body = BODY % b"slow"
    with socket.socket() as own:
        own.setblocking(False)
        await loop.sock_connect(own, (parts.hostname, parts.port))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % len(body)
        await loop.sock_sendall(own, head + body)
        while await loop.sock_recv(own, 1):  # noqa: ASYNC110 - a byte a second is what it is for
            await asyncio.sleep(1.0)


async def quick(session: aiohttp.ClientSession, url: str, number: int) -> list[float]:
    """Seconds of each request, eight at a time."""
    times: list[float] = []
    left = iter(range(number))

    async def client() -> None:
        for _ in left:
            begun_s = time.perf_counter()
            async with session.post(url + "/v1/completions", data=BODY % b"quick") as answer:
                assert await answer.read() == QUICK
            times.append(time.perf_counter() - begun_s)

    await asyncio.gather(*(client() for _ in range(8)))
    return times


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


async def measured(session: aiohttp.ClientSession, url: str, pid: int, number: int) -> dict[str, float]:
    before = cpu_s(pid)
    times = sorted(await quick(session, url, number))
    return {
        "cpu_us": (cpu_s(pid) - before) / number * 1e6,
        "p50_ms": statistics.median(times) * 1e3,
        "p99_ms": times[int(0.99 * len(times))] * 1e3,
    }


async def until(condition: Any, what: str, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(POLL_S)
    print(what, flush=True)


async def run(args: argparse.Namespace, url: str, pid: int, worker: Worker) -> dict[str, Any]:
    rounds: list[dict[str, dict[str, float]]] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def is_ready() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url + "/ready") as answer:
                    return bool(answer.status == 200)
            return False

        await until(is_ready, "router is ready", START_S)
        await quick(session, url, 100)
        idle_mib = memory_mib(pid)
        shown: dict[str, Any] = {}
        for _ in range(args.rounds):
            alone = await measured(session, url, pid, args.requests)
            worker.sent.clear()
            worker.moved_s.clear()
            readers = [asyncio.create_task(slow_reader(url)) for _ in range(args.slow)]

            async def all_stuck() -> bool:
                return len(worker.sent) == worker.num_stuck() == int(args.slow)

            begun_s = time.monotonic()
            await until(all_stuck, f"{args.slow} readers are stuck", STUCK_WITHIN_S)
            sent = sorted(worker.sent.values())
            shown = {
                "stuck_after_s": round(time.monotonic() - begun_s, 1),
                "sent_kib": [round(sent[i] / 1024) for i in (0, len(sent) // 2, -1)],
                "memory_mib": [round(idle_mib), round(memory_mib(pid))],
            }
            rounds.append({"alone": alone, "beside": await measured(session, url, pid, args.requests)})
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            await quick(session, url, 100)
    medians = {
        side: {name: round(statistics.median(r[side][name] for r in rounds), 2) for name in rounds[0][side]}
        for side in ("alone", "beside")
    }
    return {"medians": medians, **shown}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    worker = Worker()
    runner = web.ServerRunner(web.Server(worker.answer, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "router.json"
        entry = EndpointEntry(id="w", url=address, models=["m"])
        write_config(config, RouterConfig(models=[ModelEntry(name="m")], endpoints=[entry]))
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            port = own.getsockname()[1]
        command = ["-m", "quire_router", "--config", str(config), "--port", str(port), "--log-level", "warning"]
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=quiet, stderr=quiet)
        try:
            found = await run(args, f"http://127.0.0.1:{port}", process.pid, worker)
        finally:
            process.terminate()
            await process.wait()
            await runner.cleanup()
    print(json.dumps(found, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    asyncio.run(main())
