"""Clients that break off: do all of the router's gauges return to 0, and does its memory stay flat?

    python bench/router_soak.py [--disconnects 10000] [--warm-up 16000] [--concurrency 96] [--json FILE]

A real router with tenants, every limit, response cache, coalescing and filters on, a real Redis, and two workers with the real scheduler
and a stand-in for the model. Clients over raw sockets leave before the body, in the middle of it, right behind it, while they wait in the
router's queue or for the first byte, at the first byte, and in the middle of the answer; every second one with a reset. One in twelve
stays to the end. Afterwards everything that counts what is under way must be 0: the router's and the workers' requests, the waiting
room, slots and reserved tokens of every tenant (as Redis knows them), leases, usage not written, blocks. Memory is the proportional set
size of the router, measured after a warm-up that fills its caches; what counts is the largest of the last tenth against the largest of the
tenth after the first fifth. Exit code 1 if something is not 0, an answer that was waited for is not whole, or memory grew by more than 3 %.
"""

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import router_rig
from router_rig import Rig
from soak import growth_of, memory_bytes

from quire_contract import names

SAMPLE_EVERY = 250
MAX_GROWTH = 0.03
JUDGED_FROM = 5000
"""Fewer disconnects tell nothing about memory."""
NUM_PROMPTS = 80
"""New ones for ever would only fill the cache of prompts, to the 64 MiB that it may take."""
ANSWER_S = 120.0
SETTLE_S = 40.0
WAYS = ("before the body", "within the body", "behind the body", "waiting", "first byte", "middle")
STAY = "stays"
ENDS = (b"data: [DONE]\n\n", b'"message_stop"}\n\n', b"}")


@dataclass
class Seen:
    """What came of the clients."""

    left: Counter[str] = field(default_factory=Counter)
    """By what they had got when they left."""
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    """(disconnects, bytes)."""


def request_of(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Path and body: some the same for many clients, so that they share generations and cached answers."""
    same = rng.random() < 0.25
    number = rng.randrange(12) if same else rng.randrange(12, NUM_PROMPTS)
    words = f"Write to jane.{number}@example.com about {number}. " + "word " * (20 if same else 5 + number * 3 % 115)
    if rng.random() < 0.02:
        words += router_rig.BLOCKED_WORD
    talk = [{"role": "user", "content": words}]
    body = {"model": "m", "max_tokens": 40 if same else rng.randrange(20, 160), "stream": rng.random() < 0.75}
    body["temperature"] = 0 if same or rng.random() < 0.3 else 0.8
    if rng.random() < 0.25:
        return "/v1/messages", {**body, "messages": talk}
    if rng.random() < 0.35:
        return "/v1/completions", {**body, "prompt": words, "ignore_eos": True}
    return "/v1/chat/completions", {
        **body,
        "messages": talk,
        "ignore_eos": True,
        "n": 1 if same else rng.choice((1, 2)),
    }


class Client:
    """One connection."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self._address = (urlsplit(url).hostname, urlsplit(url).port)
        self._rng = rng
        self.told = b""

    async def run(self, way: str, seen: Seen) -> None:
        """Ask, and leave that way."""
        path, body = request_of(self._rng)
        data = json.dumps(body).encode()
        key = router_rig.key_of(self._rng.randrange(router_rig.NUM_TENANTS))
        head = f"POST {path} HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n"
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(head.encode() + b"Connection: close\r\n\r\n")
            if way != "before the body":
                writer.write(data[: len(data) // 2] if way == "within the body" else data)
            await self._wait(way, reader)
        except ConnectionError:
            seen.wrong.append(f"{way}: the router broke off after {self.told[-80:]!r}")
        finally:
            self._leave(writer)
        if way == STAY:
            self._judge(body, seen)
        else:
            seen.left[f"{way}, {self._state()}"] += 1

    async def _wait(self, way: str, reader: asyncio.StreamReader) -> None:
        async with asyncio.timeout(ANSWER_S):
            if way in ("before the body", "within the body"):
                await asyncio.sleep(self._rng.random() * 0.02)
            elif way == "waiting":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rng.random() * 0.3):
                        self.told = await reader.read(65536)
            elif way == "first byte":
                self.told = await reader.read(65536)
            elif way in ("middle", STAY):
                most = self._rng.randrange(1500, 6000) if way == "middle" else 1 << 30
                while len(self.told) < most and (part := await reader.read(65536)):
                    self.told += part

    def _leave(self, writer: asyncio.StreamWriter) -> None:
        if self._rng.random() < 0.5:
            own = writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()

    def _state(self) -> str:
        if not self.told:
            return "nothing came"
        _, _, text = self.told.partition(b"\r\n\r\n")
        return "only comments came" if text.count(b": ") and b"data:" not in text else "part or all of an answer came"

    def _judge(self, body: dict[str, Any], seen: Seen) -> None:
        status = self.told[9:12].decode()
        seen.statuses[status] += 1
        is_stream = body["stream"] and status == "200"
        text = self.told.removesuffix(b"0\r\n\r\n").rstrip(b"\r\n") + (b"\n\n" if is_stream else b"")
        whole = text.endswith(ENDS[:2] if is_stream else ENDS[2:])
        if status not in ("200", "400", "429") or not whole:
            seen.wrong.append(f"{status} {self.told[-200:]!r}")


async def disconnect(rig: Rig, number: int, concurrency: int, rng: random.Random) -> Seen:
    """`number` clients that leave, and a twelfth of it that stay."""
    seen, done = Seen(), 0
    left = iter(range(number))

    async def worker(own: random.Random) -> None:
        nonlocal done
        for _ in left:
            if own.random() < 1 / 12:
                await Client(rig.url, own).run(STAY, seen)
            await Client(rig.url, own).run(own.choice(WAYS), seen)
            done += 1
            if done % SAMPLE_EVERY == 0:
                seen.memory.append((done, memory_bytes([rig.router_pid])))
                print(f"{done} disconnects, {seen.memory[-1][1] / 2**20:.1f} MiB", flush=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker(random.Random(rng.getrandbits(64))))
    return seen


async def settled(rig: Rig) -> dict[str, float]:
    """What is not 0 after SETTLE_S at most: nothing, if all is well. Leases go back within seconds, reports of load take one."""
    until, found = time.monotonic() + SETTLE_S, {"not looked": 1.0}
    while any(found.values()) and time.monotonic() < until:
        await asyncio.sleep(router_rig.POLL_S * 4)
        found = await rig.gauges()
    return {name: value for name, value in found.items() if value}


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of it; what was found."""
    rng = random.Random(args.seed)
    flags = ("--max-num-seqs", "4", "--fake-decode-s-per-step", "0.003", "--num-gpu-blocks-override", "1024")
    async with router_rig.running(folder, *flags) as rig:
        before = await settled(rig)
        files_before = rig.num_files()
        await disconnect(rig, args.warm_up, args.concurrency, rng)
        started = time.monotonic()
        seen = await disconnect(rig, args.disconnects, args.concurrency, rng)
        took_s = time.monotonic() - started
        after = await settled(rig)
        left_in_queue = await rig.count(names.QUIRE_ROUTER_QUEUE_DROPPED, 'reason="client_left"')
        gone = await rig.count(names.QUIRE_ROUTER_REQUESTS, 'code="499"')
        found = {
            "took_s": took_s,
            "left": dict(sorted(seen.left.items())),
            "stayed": dict(seen.statuses),
            "left_in_queue": left_in_queue,
            "counted_as_gone": gone,
            "not_zero_before": before,
            "not_zero_after": after,
            "files": (files_before, rig.num_files()),
            "wrong": seen.wrong,
            "memory": seen.memory,
            "growth": growth_of(seen.memory),
        }
    log = (folder / "router.log").read_text()
    found["errors_in_log"] = [line for line in log.splitlines() if "ERROR" in line or "Traceback" in line]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disconnects", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=16_000, help="disconnects before, which fill caches [16000]")
    parser.add_argument("--concurrency", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(args, Path(folder)))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    memory, wrong, errors = found["memory"], found["wrong"], found["errors_in_log"]
    print(f"{args.disconnects} disconnects in {found['took_s']:.0f} s; those that stayed, by status: {found['stayed']}")
    for way, count in found["left"].items():
        print(f"  left {way}: {count}")
    print(f"left in the router's queue: {found['left_in_queue']:.0f}; counted as gone: {found['counted_as_gone']:.0f}")
    print(f"not 0 before: {found['not_zero_before']}, after: {found['not_zero_after']}; open files {found['files']}")
    if memory:
        sizes = [size / 2**20 for _, size in memory]
        print(f"memory {sizes[0]:.1f} to {sizes[-1]:.1f} MiB, grew by {100 * found['growth']:.2f} %")
    print(f"wrong: {len(wrong)}; errors in the log: {len(errors)}")
    for line in wrong[:10] + errors[:10]:
        print("  " + line)
    grew = args.disconnects >= JUDGED_FROM and found["growth"] > MAX_GROWTH
    sys.exit(bool(wrong or errors or found["not_zero_after"] or grew))


if __name__ == "__main__":
    main()
