"""Clients that read one byte a second: what do they cost the others, and what do they hold of the router's memory?

    python bench/router_slow.py [--slow 200] [--rounds 5] [--json FILE]

The router, Redis and two workers of bench/router_rig.py, tenants, limits, cache and filters on. The slow clients ask for long streams with
log-probabilities, some 800 kB each, over sockets with small buffers. Once their workers have done all that they are let do, eight clients
that read as they should run; then the slow ones leave, and the eight run again: a round. Told are the medians over rounds of the ratio
of throughput, of median time to first token and of the longest pause within a stream, beside the slow ones against without them; the
router's memory; and whether all is 0 at the end. Exit code 1 if a stream that is read does not end whole, something is not 0 at
the end, or the router's memory grows by more than 1 MiB for each slow client.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import router_rig
from router_rig import Rig
from router_soak import settled
from soak import memory_bytes

NUM_READERS = 8
STREAMS_EACH = 3
READER_TOKENS = 120
SLOW_TOKENS = 400
SMALL_BUFFER = 4096
MAX_BYTES_EACH = 2**20
QUIET_S = 1.0
SLOW_START_S = 180.0


@dataclass(frozen=True)
class Speed:
    """Of the eight readers together."""

    tokens_per_s: float
    first_s: float
    """Median time to the first token."""
    pause_s: float
    """Longest, between two parts of a stream."""


def _head(key: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def crawl(url: str, number: int) -> None:
    """One slow client, until it is cancelled: a byte each second."""
    loop = asyncio.get_running_loop()
    talk = [{"role": "user", "content": f"slow {number}"}]
    body = {"model": "m", "messages": talk, "max_tokens": SLOW_TOKENS, "ignore_eos": True, "stream": True}
    with socket.socket() as own:
        own.setblocking(False)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        await loop.sock_connect(own, (urlsplit(url).hostname, urlsplit(url).port))
        await loop.sock_sendall(
            own, _head(router_rig.key_of(number % 3), body | {"logprobs": True, "top_logprobs": 20})
        )
        while await loop.sock_recv(own, 1):  # noqa: ASYNC110 - not a wait for anything: it is what a slow client does
            await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def crawling(rig: Rig, number: int) -> AsyncIterator[None]:
    """Slow clients, once all have begun and workers go no further with them."""
    tasks = [asyncio.create_task(crawl(rig.url, i)) for i in range(number)]
    try:
        await until_stuck(rig, number)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_stuck(rig: Rig, number: int) -> None:
    """All slow streams are open at the router, and workers make no more tokens for them."""
    quiet_since, before = time.monotonic(), -1.0
    async with asyncio.timeout(SLOW_START_S):
        while time.monotonic() - quiet_since < QUIET_S:
            gauges = await rig.gauges()
            made = await rig.tokens_made()
            if made != before or gauges[router_rig.names.QUIRE_ROUTER_IN_FLIGHT] < number:
                quiet_since, before = time.monotonic(), made
            await asyncio.sleep(router_rig.POLL_S)


async def read_streams(rig: Rig, salt: str) -> Speed:
    """Eight clients, each with some streams one after another. AssertionError if one does not end whole."""
    firsts: list[float] = []
    pauses: list[float] = []

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        talk = [{"role": "user", "content": f"reader {salt} {number} " + "word " * 30}]
        body = {"model": "m", "messages": talk, "max_tokens": READER_TOKENS, "ignore_eos": True, "stream": True}
        headers = {"Authorization": f"Bearer {router_rig.key_of(0)}"}
        last = started = time.perf_counter()
        text = b""
        async with session.post(f"{rig.url}/v1/chat/completions", json=body, headers=headers) as answer:
            async for part in answer.content.iter_any():
                now = time.perf_counter()
                (pauses if text else firsts).append(now - last)
                last, text = now, text + part
        assert answer.status == 200, text
        assert text.endswith(b"data: [DONE]\n\n"), text[-300:]
        assert last > started

    async with aiohttp.ClientSession() as session:

        async def client(number: int) -> None:
            for turn in range(STREAMS_EACH):
                await one(session, number * STREAMS_EACH + turn)

        began = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(NUM_READERS)))
        took_s = time.perf_counter() - began
    return Speed(NUM_READERS * STREAMS_EACH * READER_TOKENS / took_s, statistics.median(firsts), max(pauses))


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds; what was found."""
    rounds, sizes = [], []
    flags = ("--max-num-seqs", "256", "--fake-decode-s-per-step", "0.01", "--num-gpu-blocks-override", "16384")
    async with router_rig.running(folder, *flags) as rig:
        await read_streams(rig, "warm-up")
        for number in range(args.rounds):
            before = memory_bytes([rig.router_pid])
            async with crawling(rig, args.slow):
                beside = await read_streams(rig, f"beside {number}")
                stuck = (await rig.gauges())[router_rig.names.QUIRE_ROUTER_IN_FLIGHT]
                sizes.append((before, memory_bytes([rig.router_pid])))
            left = await settled(rig)
            alone = await read_streams(rig, f"alone {number}")
            rounds.append((beside, alone))
            print(f"stuck {stuck:.0f}, {beside}, alone {alone}, memory {sizes[-1]}, left {left}", flush=True)
        left = await settled(rig)

    def ratios(name: str) -> list[float]:
        return [getattr(beside, name) / getattr(alone, name) for beside, alone in rounds]

    found: dict[str, Any] = {name: ratios(name) for name in ("tokens_per_s", "first_s", "pause_s")}
    return found | {"stuck": stuck, "sizes": sizes, "not_zero_after": left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(args, Path(folder)))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    for name in ("tokens_per_s", "first_s", "pause_s"):
        values = found[name]
        print(f"{name}, beside / alone: {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})")
    most = max(during - before for before, during in found["sizes"])
    print(f"slow streams still open at the end of a round: {found['stuck']:.0f} of {args.slow}")
    print(
        f"memory for {args.slow} slow clients: at most {most / 2**20:.1f} MiB; not 0 after: {found['not_zero_after']}"
    )
    sys.exit(bool(found["not_zero_after"]) or found["stuck"] < args.slow or most > args.slow * MAX_BYTES_EACH)


if __name__ == "__main__":
    main()
