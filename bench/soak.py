"""A long run against one worker: does memory stay flat, do blocks come back, does anything answer 5xx?

    python bench/soak.py [--requests 20000] [--abandon 0.3] [--concurrency 32] [--json FILE]

Starts a worker with the demo model and sends it what users send: chats and completions, streamed and whole, several choices, stop
strings, log-probabilities, schemas, tools, now and then a body that is wrong. A share of the requests is left in the middle, by closing
the connection. Memory is the proportional set size of the worker's two processes, taken every 500 requests; what counts is the largest
of the last tenth against the largest of the tenth after the first fifth, when caches have filled. Exit code 1 if memory
grew by more than 2 %, a block is still in use at the end, a request that was not left ended otherwise than it should, or one hung.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from client_server import DEMO, Server, serve  # noqa: E402 - the tests' own way to start a worker

SAMPLE_EVERY = 500
HANG_S = 60.0
MAX_GROWTH = 0.02
SCHEMA = {
    "type": "object",
    "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 999}, "unit": {"enum": ["m", "cm", "kg"]}},
    "required": ["value", "unit"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "convert", "parameters": SCHEMA}}


@dataclass
class Seen:
    """What came of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    """(requests done, bytes)."""


@dataclass(frozen=True)
class Shot:
    """One request."""

    path: str
    body: dict[str, Any]
    expected: int = 200


def _chat(rng: random.Random, **more: Any) -> Shot:
    words = " ".join(
        rng.choice(("Convert", "5", "km", "to", "m", "please", "and", "7", "kg")) for _ in range(rng.randint(3, 60))
    )
    body = {"model": "demo", "messages": [{"role": "user", "content": words}], "max_tokens": rng.randint(1, 32)}
    return Shot("/v1/chat/completions", {**body, "temperature": rng.choice((0, 0.7, 1.0)), **more})


def _completion(rng: random.Random, **more: Any) -> Shot:
    prompt = [rng.randrange(3, 200) for _ in range(rng.randint(1, 120))]
    return Shot("/v1/completions", {"model": "demo", "prompt": prompt, "max_tokens": rng.randint(1, 32), **more})


FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
MIX: tuple[tuple[int, Callable[[random.Random], Shot]], ...] = (
    (3, lambda rng: _chat(rng, stream=True)),
    (2, _chat),
    (1, lambda rng: _chat(rng, n=3, stop=["m", "kg"], seed=rng.randrange(2**40))),
    (1, lambda rng: _chat(rng, logprobs=True, top_logprobs=5, stream=True)),
    (1, lambda rng: _chat(rng, response_format=FORMAT, stream=True)),
    (1, lambda rng: _chat(rng, tools=[TOOL], tool_choice="required", max_tokens=64)),
    (1, lambda rng: _completion(rng, stream=True, logit_bias={"5": -100}, presence_penalty=0.5)),
    (1, lambda rng: _completion(rng, echo=True, logprobs=1)),
    (
        1,
        lambda rng: Shot(
            "/v1/chat/completions", {"model": "demo", "messages": rng.choice(([], "no", [{"role": "x"}]))}, 400
        ),
    ),
)
"""What users send, by weight."""


def shot(rng: random.Random) -> Shot:
    """The next request."""
    ((_, make),) = rng.choices(MIX, weights=[weight for weight, _ in MIX])
    return make(rng)


async def fire(session: aiohttp.ClientSession, server: Server, rng: random.Random, abandon: float, seen: Seen) -> None:
    """Send one; leave it in the middle with probability `abandon`."""
    wanted = shot(rng)
    leave = rng.random() < abandon
    try:
        async with asyncio.timeout(HANG_S):
            async with session.post(server.base + wanted.path, json=wanted.body) as response:
                if leave:
                    if wanted.body.get("stream"):
                        await response.content.readline()
                    response.close()
                    seen.outcomes["left"] += 1
                    return
                text = await response.read()
                _judge(wanted, response.status, text, seen)
    except TimeoutError:
        seen.wrong.append(f"hung: {json.dumps(wanted.body)[:300]}")
    except aiohttp.ClientError as error:
        seen.wrong.append(f"{type(error).__name__}: {json.dumps(wanted.body)[:300]}")


async def fire_and_leave_early(session: aiohttp.ClientSession, server: Server, rng: random.Random) -> None:
    """A whole answer is left while it is computed: no byte of it has come."""
    wanted = shot(rng)
    wanted.body.pop("stream", None)
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(rng.random() * 0.05):
            async with session.post(server.base + wanted.path, json=wanted.body) as response:
                await response.read()


def _judge(wanted: Shot, status: int, text: bytes, seen: Seen) -> None:
    seen.outcomes[str(status)] += 1
    is_stream = wanted.body.get("stream") and status == 200
    ended = b"data: [DONE]" in text and b'"error"' not in text if is_stream else text.startswith(b"{")
    if status != wanted.expected or not ended:
        seen.wrong.append(f"{status} {text[-200:]!r} for {json.dumps(wanted.body)[:300]}")


def processes_of(server: Server) -> list[int]:
    """The API process and what it started."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [server.pid, *map(int, children)]


def memory_bytes(pids: list[int]) -> int:
    """Proportional set size of the processes."""
    total = 0
    for pid in pids:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        assert found is not None
        total += int(found[1]) * 1024
    return total


async def kv_usage(session: aiohttp.ClientSession, server: Server) -> float:
    """Share of blocks in use, of an idle worker."""
    async with session.get(f"{server.base}/metrics") as response:
        found = re.search(r"^vllm:kv_cache_usage_perc{[^}]*} (\S+)$", await response.text(), re.MULTILINE)
    assert found is not None
    return float(found[1])


async def settled_kv_usage(session: aiohttp.ClientSession, server: Server) -> float:
    """After what was left has been aborted: asks for up to a minute until nothing is in use."""
    usage = 1.0
    for _ in range(600):
        usage = await kv_usage(session, server)
        if not usage:
            break
        await asyncio.sleep(0.1)
    return usage


async def run(args: argparse.Namespace, server: Server) -> tuple[Seen, float, float]:
    rng, seen, done = random.Random(args.seed), Seen(), 0
    pids = processes_of(server)
    gate = asyncio.Semaphore(args.concurrency)
    timeout = aiohttp.ClientTimeout(total=2 * HANG_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        before = await settled_kv_usage(session, server)

        async def one(own: random.Random) -> None:
            nonlocal done
            async with gate:
                if own.random() < args.abandon / 2:
                    await fire_and_leave_early(session, server, own)
                    seen.outcomes["left early"] += 1
                else:
                    await fire(session, server, own, args.abandon / 2 / (1 - args.abandon / 2), seen)
            done += 1
            if done % SAMPLE_EVERY == 0:
                seen.memory.append((done, memory_bytes(pids)))
                print(f"{done} requests, {seen.memory[-1][1] / 2**20:.1f} MiB, {dict(seen.outcomes)}", flush=True)

        for start in range(0, args.requests, 1000):
            batch = min(1000, args.requests - start)
            await asyncio.gather(*(one(random.Random(rng.getrandbits(64))) for _ in range(batch)))
        after = await settled_kv_usage(session, server)
    return seen, before, after


def growth_of(memory: list[tuple[int, int]]) -> float:
    """Relative; 0 where too little was measured to tell."""
    tenth = max(1, len(memory) // 10)
    warm = [size for _, size in memory[2 * tenth : 3 * tenth]]
    last = [size for _, size in memory[-tenth:]]
    return max(last) / max(warm) - 1 if warm else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--abandon", type=float, default=0.3, help="share of requests that are left [0.3]")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with serve(
        DEMO, "--num-gpu-blocks-override", "512", "--disable-log-requests", "--tool-call-parser", "hermes"
    ) as server:
        started = time.monotonic()
        seen, before, after = asyncio.run(run(args, server))
        took_s = time.monotonic() - started
    growth = growth_of(seen.memory)
    print(f"{args.requests} requests in {took_s:.0f} s: {dict(seen.outcomes)}")
    print(f"memory grew by {100 * growth:.2f} %; KV in use before {before}, after {after}; wrong: {len(seen.wrong)}")
    for line in seen.wrong[:20]:
        print("  " + line)
    if args.json:
        args.json.write_text(json.dumps({"growth": growth, "memory": seen.memory, "outcomes": seen.outcomes}, indent=1))
    sys.exit(bool(seen.wrong) or growth > MAX_GROWTH or after != before)


if __name__ == "__main__":
    main()
