"""What `quire simulate` predicts of the local CPU engine against what it does, at loads that calibration did not see.

make simulate-validate

Calibrates, then plays loads of mixed lengths against the same worker, and the same requests in simulated time. In every round each load is
measured once; medians over rounds count. Calibration is repeated in every round, because a shared machine is not equally fast all the time.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
from dataclasses import asdict
from math import log
from pathlib import Path

import psutil
from simulate_calibrate import cost_file, measure_at
from simulate_worker import Ask, Figures, client, figures_of, predict, worker

LIMIT = 0.25


def mixed(number: int, rate: float, prompt: float, output: float, seed: int) -> list[Ask]:
    """Poisson arrivals, lognormal lengths."""
    rng, at_s, asks = random.Random(seed), 0.0, []
    for _ in range(number):
        at_s += rng.expovariate(rate)
        length = min(2000, max(8, round(rng.lognormvariate(log(prompt) - 0.18, 0.6))))
        asks.append(Ask(at_s, length, min(300, max(4, round(rng.lognormvariate(log(output) - 0.125, 0.5))))))
    return asks


LOADS: dict[str, tuple[list[Ask], int | None]] = {
    "2 requests/s": (mixed(40, 2.0, 200, 60, 11), None),
    "4 requests/s": (mixed(60, 4.0, 200, 60, 12), None),
    "long prompts, 1 a second": (mixed(20, 1.0, 900, 40, 13), None),
    "6 streams": (mixed(48, 1.0, 200, 80, 14), 6),
    "24 streams": (mixed(96, 1.0, 150, 80, 15), 24),
}
"""Name -> (requests, streams of a closed loop; None: each at its time)."""


async def rounds(number: int, threads: int) -> dict[str, list[tuple[Figures, Figures]]]:
    """Load -> (measured, predicted) of each round."""
    seen: dict[str, list[tuple[Figures, Figures]]] = {name: [] for name in LOADS}
    async with worker(threads) as url, client(url, 2) as one:
        for turn in range(number):
            others = psutil.cpu_percent(1.0)
            found = cost_file(await measure_at(one, 1), threads)
            worst = max(map(abs, found.errors.values()))
            print(
                f"round {turn + 1}: others take {others:.0f} % of the machine; fit within {100 * worst:.0f} %",
                file=sys.stderr,
            )
            for name, (asks, streams) in LOADS.items():
                answers = await (one.open(asks) if streams is None else one.closed(asks, streams))
                seen[name].append((figures_of(answers, asks), predict(found, asks, streams)))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    seen = asyncio.run(rounds(asked.rounds, asked.threads))
    print("| load | figure | measured | predicted | error |\n| --- | --- | --- | --- | --- |")
    worst = 0.0
    for name, pairs in seen.items():
        for field, words, unit in (
            ("ttft_mean_s", "first token, mean", 1e3),
            ("ttft_p50_s", "first token, median", 1e3),
            ("tokens_per_s", "output tokens/s", 1.0),
        ):
            real = statistics.median(getattr(measured, field) for measured, _ in pairs)
            said = statistics.median(getattr(predicted, field) for _, predicted in pairs)
            error = statistics.median(
                getattr(predicted, field) / getattr(measured, field) - 1 for measured, predicted in pairs
            )
            worst = max(worst, abs(error))
            ending = " ms" if unit > 1 else ""
            print(
                f"| {name} | {words} | {real * unit:.0f}{ending} | {said * unit:.0f}{ending} | {100 * error:+.0f} % |"
            )
    print(f"\nlargest error {100 * worst:.0f} % (wanted at most {100 * LIMIT:.0f} %)")
    if asked.json:
        plain = {name: [[asdict(one) for one in pair] for pair in pairs] for name, pairs in seen.items()}
        asked.json.write_text(json.dumps(plain, indent=1))
    sys.exit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
