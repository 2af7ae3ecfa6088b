"""The shipped autoscaling policy against KEDA on queue length, in simulation: make simulate-policies

Three loads with committed seeds on the same model, GPU, cold start, bounds and objective. The shipped policy is an InferenceService that
says maxReplicas and nothing else. KEDA gets thresholds of 1 to 16 queued requests a replica, HPA's default behaviour (which is ours, too),
its metric without delay, every 15 s. Because queue length alone cannot tell a full batch from an empty one, each threshold also gets the
smallest minReplicas at which it holds the objective: that is the bill to compare with.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from quire_cli.simulate import policies
from quire_cli.simulate.fleet import ColdStart
from quire_cli.simulate.loads import Load, generate
from quire_cli.simulate.outcome import Objective, Summary
from quire_cli.simulate.presets import find_gpu, find_model, step_cost, worker_shape
from quire_cli.simulate.request import Request
from quire_cli.simulate.run import Plan, simulate
from quire_cli.simulate.scaler import Scaling
from quire_contract.router_settings import AdmissionSettings
from quire_operator.api.validation import parse_service

HOUR_S = 3600.0
MODEL, GPU = "qwen3-32b", "h200"
MOST = 24
COLD_START_S = 120.0
OBJECTIVE = Objective(ttft_s=3.0, itl_s=0.04, share=0.95)
THRESHOLDS = range(1, 17)
WANTED = 0.8
TRACES = {
    "a day with bursts": Load(
        kind="diurnal", duration_s=24 * HOUR_S, rate=0.25, prompt=1500, output=8000, output_spread=0.6,
        max_len=32_000, swing=0.95, burstiness=0.25, burst_s=900, seed=2701,
    ),
    "spikes": Load(
        kind="spike", duration_s=8 * HOUR_S, rate=0.35, prompt=1500, output=8000, output_spread=0.6, max_len=32_000,
        peak=3.0, seed=2702,
    ),
    "conversations in working hours": Load(
        kind="spike", duration_s=12 * HOUR_S, rate=0.35, prompt=500, output=4500, output_spread=0.6, max_len=24_000,
        reuse=0.5, peak=5.0, spike_s=2 * HOUR_S, spike_every_s=6 * HOUR_S, seed=2703,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Bill:
    """One policy on one trace."""

    trace: str
    threshold: int | None
    """None: the shipped policy."""
    least: int
    """minReplicas."""


@cache
def requests_of(trace: str) -> Sequence[Request]:
    return list(generate(TRACES[trace]))


def shipped(least: int) -> Scaling:
    """An InferenceService that names bounds and nothing else."""
    document = {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "shipped"},
        "spec": {"model": {"uri": "hf://a/b"}, "scaling": {"minReplicas": least, "maxReplicas": MOST}},
    }
    return policies.of_service(parse_service(document))


def run(bill: Bill) -> Summary:
    """Simulate it."""
    model, gpu = find_model(MODEL), find_gpu(GPU)
    plan = Plan(
        shape=worker_shape(model, gpu, 1, 256, None),
        cost=step_cost(model, gpu, 1),
        rules=AdmissionSettings(),
        cold_start=ColdStart(median_s=COLD_START_S),
        replicas=max(4, bill.least),
        objective=OBJECTIVE,
        price_per_hour=gpu.price_per_hour,
        caches=TRACES[bill.trace].reuse > 0,
        seed=TRACES[bill.trace].seed,
    )
    least, threshold = bill.least, bill.threshold
    scaling = shipped(least) if threshold is None else policies.keda(threshold, least=least, most=MOST)
    return simulate(plan, scaling, requests_of(bill.trace)).summary


def least_that_holds(trace: str, threshold: int) -> tuple[Bill, Summary] | None:
    """KEDA with the smallest minReplicas that holds the objective. None: not even the most does."""
    low, high = 2, MOST // 2
    best: tuple[Bill, Summary] | None = None
    while low <= high:
        middle = (low + high) // 2
        bill = Bill(trace, threshold, middle)
        found = run(bill)
        if found.holds:
            best, high = (bill, found), middle - 1
        else:
            low = middle + 1
    return best


def line(bill: Bill, found: Summary) -> str:
    name = "shipped" if bill.threshold is None else f"KEDA, {bill.threshold} queued"
    held = "yes" if found.holds else "no"
    return (
        f"| {bill.trace} | {name} | {bill.least} | {held}, {found.good_share:.1%} | {found.ttft.p95:.2f} s | "
        f"{found.request_itl.p95 * 1e3:.0f} ms | {found.replica_hours:.1f} | {found.replicas_most} | {found.changes} |"
    )


def compare(trace: str, pool: ProcessPoolExecutor, thresholds: Sequence[int]) -> bool:
    """Prints the trace's rows. Whether the shipped policy holds at 20 % less."""
    ours = pool.submit(run, Bill(trace, None, 1))
    plain = {n: pool.submit(run, Bill(trace, n, 1)) for n in thresholds}
    raised = [pool.submit(least_that_holds, trace, n) for n in thresholds]
    print(line(Bill(trace, None, 1), ours.result()), flush=True)
    as_is = {n: one.result() for n, one in plain.items()}
    best_plain = min((n for n, s in as_is.items() if s.holds), key=lambda n: as_is[n].replica_hours, default=None)
    shown = max(as_is, key=lambda n: as_is[n].good_share) if best_plain is None else best_plain
    print(line(Bill(trace, shown, 1), as_is[shown]), flush=True)
    holding = [(Bill(trace, n, 1), found) for n, found in as_is.items() if found.holds]
    holding += [found for one in raised if (found := one.result()) is not None]
    if not holding:
        print(f"| {trace} | KEDA | - | no threshold and minReplicas up to {MOST // 2} holds | | | | | |")
        return ours.result().holds
    bill, best = min(holding, key=lambda pair: pair[1].replica_hours)
    print(line(bill, best), flush=True)
    ratio = ours.result().replica_hours / best.replica_hours
    print(
        f"{trace}: {sum(s.holds for s in as_is.values())} of {len(as_is)} thresholds hold with minReplicas 1; "
        f"shipped takes {100 * (1 - ratio):.0f} % fewer replica-hours than the best that holds",
        file=sys.stderr,
        flush=True,
    )
    return ours.result().holds and ratio <= WANTED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", nargs="+", choices=list(TRACES), default=list(TRACES))
    parser.add_argument("--thresholds", nargs="+", type=int, default=list(THRESHOLDS))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    began_s = time.perf_counter()
    print(
        "| trace | policy | minReplicas | objective | first token p95 | between p95 | replica-hours | most | changes |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        good = [compare(trace, pool, asked.thresholds) for trace in asked.traces]
    print(f"\n{time.perf_counter() - began_s:.0f} s", file=sys.stderr)
    if asked.json:
        asked.json.write_text(json.dumps({t: msgspec.to_builtins(run(Bill(t, None, 1))) for t in asked.traces}))
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
