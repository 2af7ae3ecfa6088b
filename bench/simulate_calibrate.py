"""Measures what a step of the local CPU engine costs, for `quire simulate --cost`: make simulate-calibrate OUT=FILE

A real worker (88 M parameters, random, bf16, one compute thread) answers a few loads of one kind each: prompts alone, and batches that
decode. Their times are fitted to quire_cli.simulate.costs.StepCost.
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from simulate_worker import SHAPE, Answer, Ask, Client, client, worker

from quire_cli.simulate.costs import FORMAT, CostFile
from quire_cli.simulate.fit import Measured, fit

PROMPTS = (16, 64, 256, 1024, 2000)
DECODES = ((1, 16, 96), (4, 16, 96), (8, 16, 96), (16, 16, 96), (32, 16, 96), (4, 1500, 64), (12, 600, 64))
"""(streams, prompt, output)."""


async def prompt_alone(one: Client, length: int, rounds: int) -> Measured:
    """Time to first token with nothing else running."""
    times = []
    for _ in range(rounds):
        times.append((await one.one(length, 1, 0.0)).ttft_s)
    return Measured(
        name=f"prompt {length}",
        time_s=statistics.median(times),
        rows=1,
        tokens=length,
        pairs=length * length / 2,
        requests=1,
    )


async def decoding(one: Client, streams: int, prompt: int, output: int) -> Measured:
    """Time between tokens while all decode."""
    answers = await one.closed([Ask(0.0, prompt, output)] * streams, streams)
    gaps = _gaps_while_all(answers)
    return Measured(
        name=f"decode {streams} x {prompt}",
        time_s=statistics.median(gaps),
        rows=streams,
        tokens=streams,
        kv_tokens=streams * (prompt + output / 2),
    )


def _gaps_while_all(answers: Sequence[Answer]) -> list[float]:
    begun, ends = max(a.first_s for a in answers), min(a.tokens_s[-1] for a in answers)
    gaps = [
        (inside[-1] - inside[0]) / (len(inside) - 1)
        for answer in answers
        if len(inside := [at_s for at_s in answer.tokens_s if begun <= at_s <= ends]) > 1
    ]
    return gaps or [a.tokens_s[-1] - a.tokens_s[-2] for a in answers]


async def measure(rounds: int, threads: int) -> list[Measured]:
    async with worker(threads) as url, client(url, 1) as one:
        return await measure_at(one, rounds)


async def measure_at(one: Client, rounds: int) -> list[Measured]:
    """All points; the median of some rounds each."""
    await one.closed([Ask(0.0, 64, 32)] * 4, 4)
    found: dict[str, list[Measured]] = {}
    for _ in range(rounds):
        for length in PROMPTS:
            point = await prompt_alone(one, length, 3)
            found.setdefault(point.name, []).append(point)
        for streams, prompt, output in DECODES:
            point = await decoding(one, streams, prompt, output)
            found.setdefault(point.name, []).append(point)
    return [with_time(points[0], statistics.median(point.time_s for point in points)) for points in found.values()]


def with_time(point: Measured, time_s: float) -> Measured:
    """The point with another time."""
    return Measured(**{**vars(point), "time_s": time_s})


def cost_file(points: Sequence[Measured], threads: int) -> CostFile:
    cost, errors = fit(points)
    words = f"Llama shape, 88 M, bf16, {platform.machine()}, {os.cpu_count()} cores, {threads} compute thread(s)"
    return CostFile(format=FORMAT, measured=words, worker=SHAPE, cost=cost, errors=errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/simulate-cpu.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    points = asyncio.run(measure(asked.rounds, asked.threads))
    found = cost_file(points, asked.threads)
    for point in points:
        print(
            f"{point.name:20} {point.time_s * 1e3:9.2f} ms  fit {100 * found.errors[point.name]:+6.1f} %",
            file=sys.stderr,
        )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    print(asked.out)


if __name__ == "__main__":
    main()
