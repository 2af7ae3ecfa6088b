"""What the router's choice is worth, for bench/router.py: policies in front of the same real engines, on traces with and without reuse.

Three workers of a random-weight model (31 M parameters, float32, one thread each) behind one router for each policy. A round sends each
the same kind of trace, new tokens every time, so that each starts cold:

    reuse      15 prefixes of about 1,000 tokens, drawn at random, a tail of 32: their KV is 2.4 times what one worker's pool holds, and
               less than what all hold together
    no reuse   every prompt of that length is new
"""

import asyncio
import contextlib
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import torch
from checkpoints import Sizes, make_random_checkpoint, write_tokenizer

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, ServiceEntry, write_config

POLICIES = ("kv_aware", "round_robin", "least_load", "consistent_hash")
BASE = "round_robin"
TRACES = ("reuse", "no reuse")
SHAPE = Sizes(vocab_size=4000, hidden_size=512, intermediate_size=1408, num_layers=8, num_heads=8, num_kv_heads=4)
MODEL = "bench"
SERVICE = "bench/bench"
NUM_WORKERS = 3
NUM_PREFIXES = 15
PREFIX_TOKENS, TAIL_TOKENS = 1008, 32
BLOCKS = 400
"""Of 16 tokens, in one worker's pool: 15 prefixes are 945."""
CONCURRENCY = 3
CHUNK = 6 * CONCURRENCY
MAX_TOKENS = 8
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Seen:
    """One request."""

    first_token_s: float
    prompt_tokens: int
    cached_tokens: int


def trace(kind: str, number: int, rng: random.Random) -> list[list[int]]:
    """Prompts as token ids: exact lengths, whatever the tokenizer."""

    def some(length: int) -> list[int]:
        return [rng.randrange(100, SHAPE.vocab_size) for _ in range(length)]

    prefixes = [some(PREFIX_TOKENS) for _ in range(NUM_PREFIXES)]
    return [
        (rng.choice(prefixes) if kind == "reuse" else some(PREFIX_TOKENS)) + some(TAIL_TOKENS) for _ in range(number)
    ]


async def one(session: aiohttp.ClientSession, url: str, prompt: list[int]) -> Seen:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    usage: dict[str, Any] = {}
    started, first_s = time.perf_counter(), 0.0
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                first_s = first_s or time.perf_counter() - started
                usage = json.loads(line[6:]).get("usage") or usage
    details = usage.get("prompt_tokens_details") or {}
    return Seen(first_s, usage["prompt_tokens"], details.get("cached_tokens", 0))


async def play(url: str, prompts: Sequence[list[int]]) -> list[Seen]:
    """All prompts in their order, CONCURRENCY at a time."""
    left, seen = list(reversed(prompts)), []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:

        async def client() -> None:
            while left:
                seen.append(await one(session, url, left.pop()))

        await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    return seen


def entries(port: int) -> list[EndpointEntry]:
    return [
        EndpointEntry(
            id=f"w{i}",
            url=f"http://127.0.0.1:{port + 3 * i}",
            models=[MODEL],
            events=f"tcp://127.0.0.1:{port + 3 * i + 1}",
            replay=f"tcp://127.0.0.1:{port + 3 * i + 2}",
            service=SERVICE,
        )
        for i in range(NUM_WORKERS)
    ]


def commands(port: int, model: Path, folder: Path, policies: Sequence[str]) -> dict[str, list[str]]:
    """Of every process, by name; routers by their policy."""
    binaries = Path(sys.executable).parent
    started: dict[str, list[str]] = {}
    for entry in entries(port):
        flags = {
            "--served-model-name": MODEL,
            "--port": entry.url.rpartition(":")[2],
            "--pod-name": entry.id,
            "--kv-events-endpoint": entry.events or "",
            "--kv-replay-endpoint": entry.replay or "",
            "--num-gpu-blocks-override": str(BLOCKS),
            "--max-model-len": "2048",
            "--compute-threads": "1",
        }
        started[entry.id] = [
            str(binaries / "quire-worker"),
            str(model),
            *(word for pair in flags.items() for word in pair),
        ]
    for number, policy in enumerate(policies):
        service = ServiceEntry(id=SERVICE, policy=policy)  # type: ignore[arg-type]
        config = RouterConfig(
            models=[ModelEntry(name=MODEL, service=SERVICE)], endpoints=entries(port), services=[service]
        )
        path = folder / f"{policy}.json"
        write_config(path, config)
        started[policy] = [str(binaries / "quire-router"), "--config", str(path), "--port", str(port + 50 + number)]
    return started


@contextlib.asynccontextmanager
async def deployment(port: int, model: Path, policies: Sequence[str]) -> AsyncIterator[dict[str, str]]:
    """Workers and routers; yields the routers' URLs by policy."""
    urls = {policy: f"http://127.0.0.1:{port + 50 + i}" for i, policy in enumerate(policies)}
    with tempfile.TemporaryDirectory() as name:
        folder, processes = Path(name), []
        try:
            for process, command in commands(port, model, folder, policies).items():
                with (folder / f"{process}.log").open("w") as log:
                    processes.append(await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log))
            for url in urls.values():
                await _ready(url, folder)
            yield urls
        finally:
            for running in processes:
                with contextlib.suppress(ProcessLookupError):
                    running.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*(running.wait() for running in processes)), timeout=90)


async def _ready(url: str, folder: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError):
                shown = await (await session.get(f"{url}/debug/route")).json()
                if all(e["ready"] and e["events_in_step"] and e["bundle"] for e in shown["endpoints"]):
                    return
            await asyncio.sleep(0.2)
    logs = await asyncio.to_thread(lambda: "\n".join(p.read_text()[-1500:] for p in sorted(folder.glob("*.log"))))
    sys.exit(f"the deployment did not become ready:\n{logs}")


async def run(rounds: int, number: int, policies: Sequence[str], model: Path | None, port: int) -> dict[str, Any]:
    """trace -> policy -> a record for each round: mean and median time to first token in ms, and the share of prompt tokens cached."""
    seen: dict[str, Any] = {kind: {policy: [] for policy in policies} for kind in TRACES}
    with tempfile.TemporaryDirectory() as name:
        if model is None:
            model = Path(name)
            make_random_checkpoint(model, SHAPE, torch.float32)
            write_tokenizer(model, SHAPE.vocab_size)
        async with deployment(port, model, policies) as urls:
            for turn in range(rounds + 1):  # round 0 warms up and does not count
                order = [*policies[turn % len(policies) :], *policies[: turn % len(policies)]]
                for kind in TRACES:
                    for policy, answers in (
                        await _round(kind, number if turn else 2 * CONCURRENCY, order, urls)
                    ).items():
                        if turn:
                            seen[kind][policy].append(_record(answers))
                            print(
                                f"round {turn} {kind} {policy}: {seen[kind][policy][-1]}", file=sys.stderr, flush=True
                            )
    return seen


async def _round(kind: str, number: int, order: Sequence[str], urls: dict[str, str]) -> dict[str, list[Seen]]:
    """One round of a trace. Without reuse the policies take turns every few prompts, so that all see the same weather; with it, each plays
    its whole trace at once, or the others' prefixes would push its own out."""
    prompts = {policy: trace(kind, number, random.Random()) for policy in order}
    answers: dict[str, list[Seen]] = {policy: [] for policy in order}
    size = number if kind == "reuse" else CHUNK
    for start in range(0, number, size):
        for policy in order:
            answers[policy] += await play(urls[policy], prompts[policy][start : start + size])
    return answers


def _record(seen: Sequence[Seen]) -> dict[str, float]:
    first_ms = [1e3 * one.first_token_s for one in seen]
    return {
        "mean_ms": statistics.mean(first_ms),
        "median_ms": statistics.median(first_ms),
        "hit_rate": sum(one.cached_tokens for one in seen) / sum(one.prompt_tokens for one in seen),
    }


def rows(seen: dict[str, Any], kind: str) -> tuple[list[str], list[list[str]]]:
    """Medians over rounds, and medians of the ratios to BASE within a round."""
    header = ["policy", "mean TTFT ms", "median TTFT ms", "hit rate", f"mean TTFT / {BASE}", f"hit rate / {BASE}"]
    body = []
    for policy, records in seen[kind].items():
        base = seen[kind].get(BASE, records)
        middle = {key: statistics.median(record[key] for record in records) for key in records[0]}
        pairs = list(zip(records, base, strict=True))
        ttft = statistics.median(mine["mean_ms"] / theirs["mean_ms"] for mine, theirs in pairs)
        hits = [mine["hit_rate"] / theirs["hit_rate"] for mine, theirs in pairs if theirs["hit_rate"]]
        cells = [policy, f"{middle['mean_ms']:.0f}", f"{middle['median_ms']:.0f}", f"{100 * middle['hit_rate']:.0f} %"]
        body.append([*cells, f"{ttft:.2f}", f"{statistics.median(hits):.2f}" if hits else "-"])
    return header, body
