"""The served road under load: what the router costs, and what prefix-aware choice gains.

Starts a router and two workers of the demo model and sends streamed chats in a closed loop, alternately through the
router and straight to the workers (round robin over them, as a plain load balancer would). Every conversation belongs to
one of several long shared system prompts, so a router that knows what is cached where has something to win. Ratios are
taken within a round; medians over rounds count.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config

ROOT = Path(__file__).parents[1]
MODEL = "quire-demo"


@dataclass
class Round:
    """What one round of load saw; times in seconds."""

    first_token_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    wall_s: float = 0.0


async def stream_one(session: aiohttp.ClientSession, url: str, body: dict[str, object], seen: Round) -> None:
    started = last = time.perf_counter()
    first = True
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            now = time.perf_counter()
            if event.get("usage"):
                usage = event["usage"]
                seen.output_tokens += usage["completion_tokens"]
                seen.prompt_tokens += usage["prompt_tokens"]
                seen.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            elif event["choices"] and event["choices"][0]["delta"].get("content"):
                (seen.first_token_s if first else seen.gap_s).append(now - (started if first else last))
                first, last = False, now


def bodies(num_requests: int, max_tokens: int, rng: random.Random) -> list[dict[str, object]]:
    """Requests over eight shared system prompts that are new in every round, so each round starts cold."""
    prefixes = [" ".join(str(rng.randrange(10, 1000)) for _ in range(160)) for _ in range(8)]
    return [
        {
            "model": MODEL,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "min_tokens": max_tokens,
            "temperature": 0,
            "messages": [
                {"role": "system", "content": rng.choice(prefixes)},
                {"role": "user", "content": f"What is {rng.randrange(90)} + {rng.randrange(90)}?"},
            ],
        }
        for _ in range(num_requests)
    ]


async def run_round(next_url: Callable[[], str], work: list[dict[str, object]], concurrency: int) -> Round:
    seen, queue = Round(), list(reversed(work))
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def client() -> None:
            while queue:
                await stream_one(session, next_url(), queue.pop(), seen)

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        seen.wall_s = time.perf_counter() - started
    return seen


@contextlib.asynccontextmanager
async def deployment(port: int, folder: Path) -> AsyncIterator[list[str]]:
    """Two workers and a router on `port`, as plain servers on loopback, the following ports theirs; yields the workers' URLs."""
    binaries = Path(sys.executable).parent
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    entries = [
        EndpointEntry(
            id=f"worker-{i}",
            url=f"http://127.0.0.1:{port + 3 * i + 1}",
            models=[MODEL],
            events=f"tcp://127.0.0.1:{port + 3 * i + 2}",
            replay=f"tcp://127.0.0.1:{port + 3 * i + 3}",
        )
        for i in range(2)
    ]
    write_config(folder / "router.json", RouterConfig(models=[ModelEntry(name=MODEL)], endpoints=entries))
    commands = [[binaries / "quire-router", "--config", str(folder / "router.json"), "--port", str(port)]]
    for entry in entries:
        arguments = {
            "--port": entry.url.rpartition(":")[2],
            "--pod-name": entry.id,
            "--kv-events-endpoint": entry.events or "",
            "--kv-replay-endpoint": entry.replay or "",
            "--kv-cache-memory-bytes": str(256 << 20),
            "--compute-threads": threads,
        }
        worker = [binaries / "quire-worker", str(ROOT / "examples/models" / MODEL)]
        commands.append(worker + [word for pair in arguments.items() for word in pair])
    processes = []
    try:
        for i, command in enumerate(commands):
            with (folder / f"{i}.log").open("w") as log:
                processes.append(await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log))
        await wait_ready([entry.url for entry in entries], f"http://127.0.0.1:{port}", folder)
        yield [entry.url for entry in entries]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*(process.wait() for process in processes)), timeout=60)


def last_lines(folder: Path) -> str:
    return "\n".join(path.read_text()[-1500:] for path in sorted(folder.glob("*.log")))


async def wait_ready(workers: list[str], router: str, folder: Path) -> None:
    """Until every worker is ready and the router knows it."""
    deadline = time.monotonic() + 120
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError):
                ready = [(await session.get(f"{url}/ready")).status == 200 for url in workers]
                seen = await (await session.get(f"{router}/debug/route")).json()
                if all(ready) and sum(bool(endpoint.get("ready")) for endpoint in seen["endpoints"]) == len(workers):
                    return
            await asyncio.sleep(0.2)
    logs = await asyncio.to_thread(last_lines, folder)
    sys.exit(f"the deployment did not become ready:\n{logs}")


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def describe(name: str, rounds: list[Round]) -> str:
    def middle(of: Callable[[Round], float]) -> float:
        return statistics.median(of(r) for r in rounds)

    cells = [
        name,
        f"{middle(lambda r: r.output_tokens / r.wall_s):,.0f}",
        f"{1e3 * middle(lambda r: quantile(r.first_token_s, 0.5)):.0f} / {1e3 * middle(lambda r: quantile(r.first_token_s, 0.95)):.0f}",
        f"{1e3 * middle(lambda r: quantile(r.gap_s, 0.5)):.1f} / {1e3 * middle(lambda r: quantile(r.gap_s, 0.99)):.1f}",
        f"{100 * middle(lambda r: r.cached_tokens / r.prompt_tokens):.0f} %",
    ]
    return "| " + " | ".join(cells) + " |"


async def bench(args: argparse.Namespace) -> None:
    rng = random.Random(0)
    roads: dict[str, list[Round]] = {"router": [], "workers, round robin": []}
    with tempfile.TemporaryDirectory() as folder:
        async with deployment(args.port, Path(folder)) as workers:
            turn = itertools.cycle(workers)
            urls: dict[str, Callable[[], str]] = {
                "router": lambda: f"http://127.0.0.1:{args.port}",
                "workers, round robin": lambda: next(turn),
            }
            for number in range(args.rounds + 1):  # round 0 warms up and does not count
                for name, next_url in urls.items():
                    seen = await run_round(next_url, bodies(args.requests, args.max_tokens, rng), args.concurrency)
                    if number:
                        roads[name].append(seen)
    load = f"{args.requests} requests a round, {args.concurrency} at once, {args.max_tokens} tokens each"
    print(f"{os.cpu_count()} cores; {load}; {args.rounds} rounds.\n")
    print("| road | output tok/s | first token p50 / p95 ms | between tokens p50 / p99 ms | prompt tokens cached |")
    print("| --- | --- | --- | --- | --- |")
    for name, rounds in roads.items():
        print(describe(name, rounds))
    pairs = list(zip(*roads.values(), strict=True))
    first = statistics.median(quantile(b.first_token_s, 0.5) / quantile(a.first_token_s, 0.5) for a, b in pairs)
    rate = statistics.median((a.output_tokens / a.wall_s) / (b.output_tokens / b.wall_s) for a, b in pairs)
    print(
        f"\nrouter against round robin: {rate:.2f}x output tokens/s, first token {first:.2f}x sooner (medians of per-round ratios)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=32)
    asyncio.run(bench(parser.parse_args()))


if __name__ == "__main__":
    main()
