"""A real worker on this machine's CPU and a client for it, and the same worker in simulated time: what calibration and validation share."""

import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import aiohttp
import torch
from checkpoints import LLAMA_88M, make_random_checkpoint, write_tokenizer

from quire_cli.simulate.costs import CostFile, WorkerShape
from quire_cli.simulate.exact_worker import ExactWorker
from quire_cli.simulate.job import Told
from quire_cli.simulate.request import Request

MODEL = "bench"
BLOCKS = 4000
SHAPE = WorkerShape(kv_blocks=BLOCKS - 1, max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=4096, depth=1)
START_S = 120.0


@dataclass(frozen=True)
class Ask:
    """One request."""

    at_s: float
    prompt: int
    output: int


@dataclass(frozen=True)
class Answer:
    """What came of it, in seconds since the load's beginning."""

    sent_s: float
    first_s: float
    tokens_s: tuple[float, ...]
    """When each event with tokens came."""

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.sent_s


@contextlib.asynccontextmanager
async def worker(threads: int) -> AsyncIterator[str]:
    """A worker process with a random model of 88 M parameters; yields its URL."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_random_checkpoint(folder / "model", LLAMA_88M, torch.bfloat16)
        write_tokenizer(folder / "model", LLAMA_88M.vocab_size)
        port = await _free_port()
        command = [str(Path(sys.executable).parent / "quire-worker"), str(folder / "model"), "--port", str(port)]
        flags = {
            "--served-model-name": MODEL,
            "--num-gpu-blocks-override": str(BLOCKS),
            "--max-num-seqs": str(SHAPE.max_num_seqs),
            "--max-model-len": str(SHAPE.max_model_len),
            "--compute-threads": str(threads),
            "--depth": str(SHAPE.depth),
        }
        words = [word for pair in flags.items() for word in pair]
        with (folder / "log").open("w") as log:
            process = await asyncio.create_subprocess_exec(*command, *words, stdout=log, stderr=log)
            try:
                url = f"http://127.0.0.1:{port}"
                await _ready(url, folder / "log")
                yield url
            finally:
                process.terminate()
                await process.wait()


async def _free_port() -> int:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def _ready(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/ready") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
    sys.exit(f"the worker did not become ready:\n{await asyncio.to_thread(lambda: log.read_text()[-2000:])}")


class Client:
    """Sends requests whose prompts nobody has sent before."""

    def __init__(self, session: aiohttp.ClientSession, url: str, seed: int) -> None:
        self._session, self._url = session, url
        self._rng = random.Random(f"{seed} {time.time_ns()}")

    async def one(self, prompt: int, output: int, start_s: float) -> Answer:
        """One request now."""
        tokens = [self._rng.randrange(100, LLAMA_88M.vocab_size) for _ in range(prompt)]
        body = {"model": MODEL, "prompt": tokens, "max_tokens": output, "temperature": 0, "ignore_eos": True}
        came: list[float] = []
        sent_s = time.perf_counter() - start_s
        async with self._session.post(f"{self._url}/v1/completions", json=body | {"stream": True}) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                    came.append(time.perf_counter() - start_s)
        return Answer(sent_s, came[0], tuple(came))

    async def open(self, asks: Sequence[Ask]) -> list[Answer]:
        """Each at its time, whatever the others do."""
        start_s = time.perf_counter()

        async def at_its_time(ask: Ask) -> Answer:
            await asyncio.sleep(max(0.0, start_s + ask.at_s - time.perf_counter()))
            return await self.one(ask.prompt, ask.output, start_s)

        return list(await asyncio.gather(*map(at_its_time, asks)))

    async def closed(self, asks: Sequence[Ask], streams: int) -> list[Answer]:
        """In order, `streams` at a time."""
        start_s, left, answers = time.perf_counter(), list(reversed(asks)), list[Answer]()

        async def stream() -> None:
            while left:
                ask = left.pop()
                answers.append(await self.one(ask.prompt, ask.output, start_s))

        await asyncio.gather(*(stream() for _ in range(streams)))
        return answers


@contextlib.asynccontextmanager
async def client(url: str, seed: int) -> AsyncIterator[Client]:
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Client(session, url, seed)


@dataclass(frozen=True)
class Figures:
    """Of one load."""

    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    tokens_per_s: float


def figures(ttfts: Sequence[float], num_tokens: int, end_s: float) -> Figures:
    ordered = sorted(ttfts)
    return Figures(
        statistics.mean(ordered),
        statistics.median(ordered),
        ordered[int(0.95 * (len(ordered) - 1))],
        num_tokens / end_s,
    )


def figures_of(answers: Sequence[Answer], asks: Sequence[Ask]) -> Figures:
    """As measured."""
    end_s = max(answer.tokens_s[-1] for answer in answers)
    return figures([answer.ttft_s for answer in answers], sum(ask.output for ask in asks), end_s)


def predict(found: CostFile, asks: Sequence[Ask], streams: int | None) -> Figures:
    """The same load in simulated time: every step by the real scheduler. `streams`: in order, so many at a time."""
    now_s = 0.0
    ttfts: list[float] = []
    ended: list[float] = []

    def first(request: Request, at_s: float) -> None:
        ttfts.append(at_s - request.at_s + found.cost.request_s)

    told = Told(first=first, done=lambda request, at_s: ended.append(at_s))
    sim = ExactWorker(0, found.worker, found.cost, told, lambda: now_s)
    _warm(sim, found)
    waiting, num_sent = list(reversed(asks)), 0

    def send(at_s: float) -> None:
        nonlocal num_sent
        ask = waiting.pop()
        sim.add(
            Request(
                number=num_sent, at_s=at_s, prompt=ask.prompt, output=ask.output, chain=((f"r{num_sent}", ask.prompt),)
            ),
            at_s,
        )
        num_sent += 1

    for _ in range(streams or 0):
        send(0.0)
    while waiting or sim.due_s < inf:
        next_s = waiting[-1].at_s if waiting and streams is None else inf
        now_s = min(sim.due_s, next_s)
        if next_s <= sim.due_s:
            send(now_s)
            continue
        before = len(ended)
        sim.advance(now_s)
        for _ in range(len(ended) - before):
            if streams is not None and waiting:
                send(now_s)
    return figures(ttfts, sum(ask.output for ask in asks), ended[-1])


def _warm(sim: ExactWorker, found: CostFile) -> None:
    """The real worker has measured its speeds before the load begins: the last request of what came before ended alone."""
    prompt = 1000
    sim.speeds.add(prompt, 1, found.cost.step_s(1, prompt, 0, prompt * prompt / 2))
    sim.speeds.add(1, 1, found.cost.step_s(1, 1, 200, 0))
