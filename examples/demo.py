"""The demo: `quire up examples/quickstart.yaml`, then real requests through the router with the OpenAI client.

Shows a streamed chat, 32 questions at once, and a round whose requests share long prefixes; prints the answers, tokens per second,
time to first token, the prefix-cache hit rate, and for every request which worker took it and why. Ends with exit code 0 and
nothing left running, or with 1 and what was wrong. Run it as `make demo`, or `.venv/bin/python examples/demo.py`.
"""

import asyncio
import importlib.util
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from openai import AsyncOpenAI, OpenAIError
from openai.types.chat import ChatCompletionMessageParam
from rich.console import Console
from rich.table import Table

from quire_cli.local.child import LAUNCHER, log_tail
from quire_cli.local.ports import free_ports

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "quickstart.yaml"
MODEL = "quire-demo"
SEED = 2026
NUM_QUESTIONS = 32
NUM_PREFIXES = 4
QUESTIONS_PER_PREFIX = 8
SENTENCES_PER_PREFIX = 50
MAX_TOKENS = 96
MIN_RIGHT = 0.8
MIN_HIT_RATE = 0.5
START_TIMEOUT_S = 180.0
REQUEST_TIMEOUT_S = 120.0
END_TIMEOUT_S = 60.0


class DemoError(Exception):
    """The demo cannot go on."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request and what came back."""

    prompt: str
    expected: str
    text: str
    task: str
    worker: str
    """Name of the pod that answered."""
    route: str
    """Why that one: the router's header, later its words from /debug/route."""
    request_id: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    first_token_s: float
    total_s: float

    @property
    def is_right(self) -> bool:
        """Whether the whole answer is the expected one."""
        return self.text.strip() == self.expected


@dataclass(frozen=True, kw_only=True)
class Round:
    """Requests sent at once, and the time until the last one was done."""

    answers: Sequence[Answer]
    wall_s: float


def load_questions() -> Any:
    """The module that makes questions for the demo model; it lies outside the installed packages."""
    spec = importlib.util.spec_from_file_location("demo_model_questions", HERE / "demo_model" / "questions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def served(console: Console, logs: Path) -> AsyncIterator[str]:
    """`quire up` while entered. The base URL of its endpoint."""
    port = next(free_ports("127.0.0.1"))
    quire = Path(sys.executable).with_name("quire")
    command = [str(quire), "up", str(MANIFEST), "--port", str(port), "--log-dir", str(logs)]
    console.print(f"[bold]$ quire up examples/{MANIFEST.name} --port {port}[/]")
    # Through the launcher, so that not even a killed demo leaves processes behind.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *command,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    lines = relay(process, console)
    rest = None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            base = await wait_for_ready(lines)
            rest = asyncio.create_task(drain(lines))
            await wait_for_index(base)
        yield base
    finally:
        await stop(process, rest)


async def relay(process: asyncio.subprocess.Process, console: Console) -> AsyncIterator[str]:
    """The process's lines, shown as they come."""
    assert process.stdout is not None
    async for raw in process.stdout:
        line = raw.decode("utf-8", "replace").rstrip()
        console.print(f"  {line}", style="dim", markup=False, highlight=False, soft_wrap=True)
        yield line


async def wait_for_ready(lines: AsyncIterator[str]) -> str:
    """The base URL, once it serves."""
    async for line in lines:
        match = re.match(r"ready: (http://\S+)/v1 ", line)
        if match:
            return match[1]
    raise DemoError("quire up ended before it was ready")


async def drain(lines: AsyncIterator[str]) -> None:
    """Shows what else comes."""
    async for _ in lines:
        continue


async def wait_for_index(base: str) -> None:
    """Until the router knows every worker's tokenizer and reads its events: from then on its choices are exact."""
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{base}/debug/route") as answer:
                endpoints = (await answer.json())["endpoints"]
            if endpoints and all(endpoint["bundle"] and endpoint["events_in_step"] for endpoint in endpoints):
                return
            await asyncio.sleep(0.05)


async def stop(process: asyncio.subprocess.Process, rest: asyncio.Task[None] | None) -> None:
    """Ends `quire up` in order. Raises DemoError if it does not end as it should."""
    if process.returncode is None:
        process.terminate()
    try:
        code = await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        raise DemoError(f"quire up did not end within {END_TIMEOUT_S:g} s") from None
    if rest is not None:
        await rest
    if code != 0:
        raise DemoError(f"quire up ended with exit code {code}")


async def ask(client: AsyncOpenAI, question: Any, system: str | None = None, live: Console | None = None) -> Answer:
    """One streamed chat; with `live`, its tokens are printed as they come."""
    messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question.prompt})
    start = time.perf_counter()
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=messages,
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, first_s, usage = "", 0.0, None
    async for chunk in raw.parse():
        usage = chunk.usage or usage
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            first_s = first_s or time.perf_counter() - start
            text += piece
            if live:
                live.print(piece, end="", style="bold green", markup=False, highlight=False)
    total_s = time.perf_counter() - start
    if usage is None:
        raise DemoError("a stream ended without usage")
    details = usage.prompt_tokens_details
    return Answer(
        prompt=question.prompt,
        expected=question.answer,
        text=text,
        task=question.task,
        worker=raw.headers.get("x-quire-worker", "?"),
        route=raw.headers.get("x-quire-route", "?"),
        request_id=raw.headers.get("x-request-id", ""),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        generated_tokens=usage.completion_tokens,
        first_token_s=first_s or total_s,
        total_s=total_s,
    )


async def ask_all(client: AsyncOpenAI, asked: Sequence[tuple[Any, str | None]]) -> Round:
    """All (question, system prompt) pairs at once."""
    start = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, question, system) for question, system in asked))
    return Round(answers=answers, wall_s=time.perf_counter() - start)


async def with_reasons(base: str, done: Round) -> Round:
    """The same round with the router's own words for each choice."""
    async with aiohttp.ClientSession() as http, http.get(f"{base}/debug/route?limit={len(done.answers) * 2}") as answer:
        decisions = (await answer.json())["decisions"]
    reasons = {item["request_id"]: f"{item['level']}: {short(item['reason'])}" for item in reversed(decisions)}
    answers = [replace(item, route=reasons.get(item.request_id, item.route)) for item in done.answers]
    return replace(done, answers=answers)


def short(reason: str) -> str:
    """A reason without the counts, which the table has in columns of their own."""
    return re.sub(r", \d+ of \d+ tokens", "", reason)


def show_round(console: Console, title: str, done: Round) -> None:
    """Every request: question, answer, worker and why."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("question", max_width=34, no_wrap=True, overflow="ellipsis")
    table.add_column("answer", max_width=34, no_wrap=True, overflow="ellipsis")
    table.add_column("", width=1)
    for name in ("prompt", "cached", "ttft ms"):
        table.add_column(name, justify="right")
    table.add_column("worker")
    table.add_column("why", overflow="fold")
    for number, item in enumerate(done.answers, 1):
        mark = "[green]✓[/]" if item.is_right else "[red]✗[/]"
        table.add_row(
            str(number), plain(item.prompt), plain(item.text), mark, str(item.prompt_tokens), str(item.cached_tokens),
            f"{item.first_token_s * 1000:.0f}", item.worker.rpartition("-")[2], plain(item.route),
        )  # fmt: skip
    console.print(table)
    console.print()


def plain(text: str) -> str:
    """One line, safe from rich's markup."""
    return " ".join(text.split()).replace("[", r"\[")


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * percent // 100) - 1)]


def hit_rate(answers: Sequence[Answer]) -> float:
    """Share of prompt tokens that came out of the prefix cache."""
    return sum(item.cached_tokens for item in answers) / max(1, sum(item.prompt_tokens for item in answers))


def show_summary(console: Console, rounds: dict[str, Round]) -> None:
    """One row per round."""
    table = Table(title="Summary", title_justify="left", title_style="bold", header_style="bold")
    table.add_column("round")
    for name in ("requests", "right", "tokens/s", "ttft median", "ttft p95", "prefix-cache hits", "per worker"):
        table.add_column(name, justify="right")
    for name, done in rounds.items():
        firsts = [item.first_token_s * 1000 for item in done.answers]
        workers = sorted(item.worker for item in done.answers)
        table.add_row(
            name,
            str(len(done.answers)),
            f"{sum(item.is_right for item in done.answers)}",
            f"{sum(item.generated_tokens for item in done.answers) / done.wall_s:.0f}",
            f"{statistics.median(firsts):.0f} ms",
            f"{percentile(firsts, 95):.0f} ms",
            f"{hit_rate(done.answers):.0%}",
            " / ".join(str(workers.count(worker)) for worker in sorted(set(workers))),
        )
    console.print(table)


def problems_of(batch: Round, shared: Round) -> list[str]:
    """What is not as it should be."""
    problems = []
    for name, done in (("the batch", batch), ("the round with shared prefixes", shared)):
        right = sum(item.is_right for item in done.answers) / len(done.answers)
        if right < MIN_RIGHT:
            problems.append(f"only {right:.0%} of {name} is right, expected at least {MIN_RIGHT:.0%}")
        if len({item.worker for item in done.answers}) < 2:
            problems.append(f"{name} used one worker only")
    if hit_rate(shared.answers) < MIN_HIT_RATE:
        problems.append(f"prefix-cache hit rate {hit_rate(shared.answers):.0%}, expected at least {MIN_HIT_RATE:.0%}")
    return problems


async def converse(console: Console, base: str) -> list[str]:
    """All requests of the demo. What was wrong."""
    questions = load_questions()
    rng = random.Random(SEED)
    count = NUM_QUESTIONS + NUM_PREFIXES * QUESTIONS_PER_PREFIX + 1
    first, *others = questions.held_out_questions(SEED, count)
    prefixes = [questions.system_prompt(rng, SENTENCES_PER_PREFIX) for _ in range(NUM_PREFIXES)]
    batch_questions, shared_questions = others[:NUM_QUESTIONS], others[NUM_QUESTIONS:]
    async with AsyncOpenAI(base_url=f"{base}/v1", api_key="none", timeout=REQUEST_TIMEOUT_S, max_retries=0) as client:
        console.print("\n[bold]1. A streamed chat[/]")
        console.print(f"   user:  {plain(first.prompt)}\n   model: ", end="")
        chat = await ask(client, first, live=console)
        console.print(
            f"\n   first token after {chat.first_token_s * 1000:.0f} ms, worker {chat.worker}, {chat.route}\n"
        )

        batch = await ask_all(client, [(question, None) for question in batch_questions])
        batch = await with_reasons(base, batch)
        show_round(console, f"2. {NUM_QUESTIONS} questions at once", batch)

        # The first question behind each prefix computes it; the others should go where it lies.
        cold = await ask_all(client, list(zip(shared_questions[:NUM_PREFIXES], prefixes, strict=True)))
        warm = [
            (question, prefixes[index % NUM_PREFIXES]) for index, question in enumerate(shared_questions[NUM_PREFIXES:])
        ]
        shared = await with_reasons(base, await ask_all(client, warm))
        title = f"3. {len(warm)} questions behind {NUM_PREFIXES} long prefixes, each computed once before"
        show_round(console, title, shared)
    show_summary(console, {"32 at once": batch, "prefixes, first time": cold, "prefixes, again": shared})
    return problems_of(batch, shared)


async def run(console: Console) -> list[str]:
    """The whole demo. What was wrong."""
    with tempfile.TemporaryDirectory(prefix="quire-demo-") as folder:
        logs = Path(folder)
        try:
            async with served(console, logs) as base:
                return await converse(console, base)
        except TimeoutError:
            return [f"not ready within {START_TIMEOUT_S:g} s", *last_words(logs)]
        except (DemoError, OpenAIError, aiohttp.ClientError, OSError) as error:
            return [f"{type(error).__name__}: {error}", *last_words(logs)]


def last_words(logs: Path) -> list[str]:
    """The ends of all logs."""
    return [f"{log.name}: {line}" for log in sorted(logs.glob("*.log")) for line in log_tail(log)]


def main() -> int:
    """The exit code."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        problems = asyncio.run(run(console))
    except KeyboardInterrupt:
        return 130
    for problem in problems:
        console.print(f"problem: {problem}", style="bold red", markup=False)
    if not problems:
        console.print("[bold green]All good.[/] Nothing is left running.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
