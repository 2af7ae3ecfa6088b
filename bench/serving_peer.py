"""Server against server: ours and `vllm serve` with the same streamed completions, one client for both.

Both servers stay loaded; in every round each has its turn with the same prompts, while all processes of the other are stopped (SIGSTOP).
A number of clients send one request after the other (closed loop), of equal prompts and unequal lengths of output, so that new prompts
come while others decode. What counts is the median over rounds of the ratio within a round.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import statistics
import string
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
from checkpoints import make_random_checkpoint, work_folder, write_tokenizer
from rows import MAX_MODEL_LEN, MODELS
from side import (
    Bystanders,
    ProcessTree,
    end_on_signals,
    env_pair,
    machine_lock,
    processor,
    start_tree,
    vllm_env,
    wait_until_quiet,
)

OURS, PEER = "quire", "vllm"
SERVED_NAME = "bench"
START_TIMEOUT_S = 600.0
ROUND_TIMEOUT_S = 600.0
Body = dict[str, object]


@dataclass
class Stream:
    """One answer: what came when."""

    started: float
    chunks: list[tuple[float, bytes]] = field(default_factory=list)

    def events(self) -> list[tuple[float, dict[str, object]]]:
        """Each with the time at which its last byte came. Parsed afterwards, so that the client takes little of the processors."""
        found, rest = [], b""
        for at, chunk in self.chunks:
            *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
            found += [(at, json.loads(event[6:])) for event in whole if event.startswith(b"data: {")]
        return found


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One server under one load; times in seconds."""

    output_tokens_per_s: float
    first_token_p50_s: float
    first_token_p99_s: float
    gap_p50_s: float
    gap_p99_s: float
    tokens_per_event: float
    """1 where every token comes alone."""


class Server:
    """A server on loopback, stopped while it is not its turn."""

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], port: int, ready_path: str, log: Path
    ) -> None:
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self._command, self._env, self._ready_path, self._log = command, env, ready_path, log
        self.tree: ProcessTree | None = None

    async def start(self) -> float:
        """Start it and stop it when it is ready; seconds from process start to its first answer."""
        started = time.perf_counter()
        self.tree = start_tree(self.name, self._command, self._env, self._log, pipes=False)
        async with aiohttp.ClientSession() as session:
            while not await self._is_ready(session):
                if self.tree.process.poll() is not None:
                    raise self.tree.failure("ended")
                if time.perf_counter() - started > START_TIMEOUT_S:
                    raise self.tree.failure(f"was not ready within {START_TIMEOUT_S:.0f} s")
                await asyncio.sleep(0.05)
            await stream_one(session, self.url, body_of("a", 1))
        seconds = time.perf_counter() - started
        self.tree.pause()
        return seconds

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(self.url + self._ready_path) as response:
                return response.status == 200
        return False

    def kill(self) -> None:
        """End it, if it was started."""
        if self.tree is not None:
            self.tree.kill()

    def processor_s(self) -> float:
        """Processor time so far."""
        return 0.0 if self.tree is None else self.tree.processor_s()


def body_of(prompt: str, max_tokens: int) -> Body:
    return {
        "model": SERVED_NAME,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def bodies(num_requests: int, args: argparse.Namespace, rng: random.Random) -> list[Body]:
    """New prompts of --prompt-words words; lengths of output spread evenly from a half to three halves of --max-tokens."""
    made = []
    for _ in range(num_requests):
        words = ["".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(args.prompt_words)]
        made.append(body_of(" ".join(words), rng.randint(args.max_tokens // 2, args.max_tokens * 3 // 2)))
    return made


async def stream_one(session: aiohttp.ClientSession, url: str, body: Body) -> Stream:
    stream = Stream(time.perf_counter())
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for chunk in response.content.iter_any():
            stream.chunks.append((time.perf_counter(), chunk))
    return stream


async def load(url: str, work: list[Body], concurrency: int) -> Seen:
    """`concurrency` clients until all of `work` is done."""
    queue, streams = list(reversed(work)), []
    timeout = aiohttp.ClientTimeout(total=ROUND_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def client() -> None:
            while queue:
                streams.append(await stream_one(session, url, queue.pop()))

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        wall_s = time.perf_counter() - started
    return digest(streams, sum(int(str(body["max_tokens"])) for body in work), wall_s)


def digest(streams: list[Stream], num_tokens: int, wall_s: float) -> Seen:
    """Asserts that the server generated `num_tokens` in all."""
    first, gaps, counted, num_events = [], [], 0, 0
    for stream in streams:
        times = []
        for at, event in stream.events():
            usage, choices = event.get("usage"), event.get("choices")
            assert "error" not in event, event
            if isinstance(usage, dict):
                counted += usage["completion_tokens"]
            if isinstance(choices, list) and choices and choices[0].get("text"):
                times.append(at)
        first.append(times[0] - stream.started)
        gaps += [later - sooner for sooner, later in itertools.pairwise(times)]
        num_events += len(times)
    assert counted == num_tokens, f"{counted} tokens came, not {num_tokens}"
    return Seen(
        output_tokens_per_s=num_tokens / wall_s,
        first_token_p50_s=quantile(first, 0.5),
        first_token_p99_s=quantile(first, 0.99),
        gap_p50_s=quantile(gaps, 0.5),
        gap_p99_s=quantile(gaps, 0.99),
        tokens_per_event=num_tokens / num_events,
    )


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def make_servers(args: argparse.Namespace, model_dir: Path, logs: Path) -> dict[str, Server]:
    ports = [free_port(), free_port()]
    common = ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", str(MAX_MODEL_LEN)]
    common += ["--served-model-name", SERVED_NAME, "--no-enable-prefix-caching"]
    ours = [str(Path(sys.executable).with_name("quire-worker")), str(model_dir), *common, "--port", str(ports[0])]
    ours += ["--kv-cache-memory-bytes", f"{args.kv_gib}GiB", "--compute-threads", str(args.threads)]
    ours += ["--disable-log-requests", "--log-level", "warning"]
    theirs = [str(args.peer_python.absolute()), "-m", "vllm.entrypoints.cli.main", "serve", str(model_dir), *common]
    theirs += ["--port", str(ports[1]), "--uvicorn-log-level", "error", "--disable-uvicorn-access-log"]
    env = vllm_env(args.threads, args.kv_gib, logs) | dict(args.peer_env)
    return {
        OURS: Server(OURS, ours, {}, ports[0], "/ready", logs / "quire.log"),
        PEER: Server(PEER, theirs, env, ports[1], "/health", logs / "vllm.log"),
    }


@dataclass(frozen=True)
class Round:
    """Both servers once."""

    seen: dict[str, Seen]
    others: float
    """Share of the processors that went to processes outside the benchmark, in the turn that had most of it."""


async def run_round(
    servers: dict[str, Server], work: list[Body], concurrency: int, lock: Path | None, *, is_reversed: bool
) -> Round:
    seen, others = {}, 0.0
    with machine_lock(lock):
        for name in reversed(servers) if is_reversed else servers:
            tree = servers[name].tree
            assert tree is not None
            bystanders = Bystanders(servers.values())
            tree.resume()
            seen[name] = await load(servers[name].url, work, concurrency)
            tree.pause()
            others = max(others, bystanders.share())
    return Round(seen, others)


async def measure(servers: dict[str, Server], args: argparse.Namespace) -> dict[int, list[Round]]:
    """By concurrency. A round disturbed by other processes is done again, --rounds times at most."""
    rng, found = random.Random(0), {}
    for concurrency in args.concurrency:
        warm_up = [body | {"max_tokens": 8} for body in bodies(concurrency, args, rng)]
        await run_round(servers, warm_up, concurrency, args.lock, is_reversed=False)
        rounds: list[Round] = []
        while len(rounds) < 2 * args.rounds and sum(r.others <= args.max_others for r in rounds) < args.rounds:
            await asyncio.to_thread(wait_until_quiet, args.max_others, args.wait_quiet_s)
            work = bodies(concurrency * args.requests, args, rng)
            is_reversed = len(rounds) % 2 == 1
            rounds.append(await run_round(servers, work, concurrency, args.lock, is_reversed=is_reversed))
            rates = {name: round(seen.output_tokens_per_s) for name, seen in rounds[-1].seen.items()}
            progress(
                f"{concurrency} streams, round {len(rounds)}: {rates} tok/s, others {100 * rounds[-1].others:.0f} %"
            )
        found[concurrency] = sorted(rounds, key=lambda one: one.others)[: args.rounds]
    return found


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


MEASURES: dict[str, tuple[Callable[[Seen], float], Callable[[float], str], bool]] = {
    "output tokens/s": (lambda seen: seen.output_tokens_per_s, "{:,.0f}".format, True),
    "between tokens, p50": (lambda seen: seen.gap_p50_s * 1e3, "{:.1f} ms".format, False),
    "between tokens, p99": (lambda seen: seen.gap_p99_s * 1e3, "{:.1f} ms".format, False),
    "first token, p50": (lambda seen: seen.first_token_p50_s * 1e3, "{:.0f} ms".format, False),
    "first token, p99": (lambda seen: seen.first_token_p99_s * 1e3, "{:.0f} ms".format, False),
    "tokens an event": (lambda seen: seen.tokens_per_event, "{:.2f}".format, True),
}
"""By name: value, how to show it, and whether more is better."""


def table(found: dict[int, list[Round]]) -> str:
    """Medians; then how many times better ours is, medians of per-round ratios and their range."""
    lines = ["| streams | | quire | vllm | quire better by |", "| --- | --- | --- | --- | --- |"]
    for concurrency, rounds in found.items():
        for what, (value, show, is_more_better) in MEASURES.items():
            pairs = [(value(one.seen[OURS]), value(one.seen[PEER])) for one in rounds]
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratios = [mine / other if is_more_better else other / max(mine, 1e-6) for mine, other in pairs]
            better = f"**{statistics.median(ratios):.2f}x** ({min(ratios):.2f}-{max(ratios):.2f})"
            lines.append(f"| {concurrency} | {what} | {show(ours)} | {show(theirs)} | {better} |")
    return "\n".join(lines)


async def bench(args: argparse.Namespace) -> None:
    sizes, words = MODELS[args.shape]
    with work_folder(args.work) as folder, ExitStack() as running:
        model_dir = folder / args.shape
        make_random_checkpoint(model_dir, sizes)
        write_tokenizer(model_dir, sizes.vocab_size)
        servers = make_servers(args, model_dir, folder)
        starts, memory = {}, {}
        for name, server in servers.items():
            running.callback(server.kill)
            starts[name] = await server.start()
            progress(f"{name} is ready after {starts[name]:.1f} s")
        found = await measure(servers, args)
        for name, server in servers.items():
            assert server.tree is not None
            memory[name] = server.tree.memory()
    others = max(one.others for rounds in found.values() for one in rounds)
    print(f"{processor()}, {args.threads} threads; {words}, bf16, greedy, {args.kv_gib} GiB of KV each; prompts of")
    print(
        f"{args.prompt_words} words, {args.max_tokens // 2} to {args.max_tokens * 3 // 2} tokens of output, {args.requests} requests"
    )
    print(f"a stream; {args.rounds} interleaved rounds; others took {100 * others:.0f} % of the processors at most.\n")
    print(table(found))
    shown = [
        f"{name} {starts[name]:.1f} s, {memory[name].pss:,.0f} MiB PSS ({memory[name].rss:,.0f} RSS)"
        for name in servers
    ]
    print("\nProcess start to first answer, memory after all rounds: " + "; ".join(shown))
    if args.json:
        rounds_json = {str(n): [asdict(one) for one in rounds] for n, rounds in found.items()}
        written = {"model": words, "start_s": starts, "rounds": rounds_json}
        args.json.write_text(json.dumps(written, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer-python", type=Path, required=True, help="interpreter of an environment with vLLM's CPU backend"
    )
    parser.add_argument(
        "--peer-env",
        type=env_pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for vLLM, over what is its best setting",
    )
    parser.add_argument("--shape", choices=list(MODELS), default="88m")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 32], help="streams at once [8 32]")
    parser.add_argument("--requests", type=int, default=2, help="requests of each stream in a round [2]")
    parser.add_argument("--prompt-words", type=int, default=20, help="words of a prompt; about three tokens each [20]")
    parser.add_argument("--max-tokens", type=int, default=128, help="mean tokens of output [128]")
    parser.add_argument("--rounds", type=int, default=5, help="pairs that count, after a short warm-up [5]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kv-gib", type=int, default=1, help="bytes of KV of each server, in GiB [1]")
    parser.add_argument("--work", type=Path, help="folder for model, logs and vLLM's cache, kept [a temporary one]")
    parser.add_argument("--lock", type=Path, help="file to lock while measuring, a round at a time")
    parser.add_argument("--max-others", type=float, default=0.15, help="share of the processors others may take [0.15]")
    parser.add_argument(
        "--wait-quiet-s",
        type=float,
        default=20.0,
        help="seconds a round may wait until others take less than --max-others [20]",
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    end_on_signals()
    asyncio.run(bench(parser.parse_args()))


if __name__ == "__main__":
    main()
