"""Measures launch parameters on the GPU at hand and writes the launch table, under that device's kind.

    python -m gpu.tune [--out FILE] [--only TEXT] [--limit-s 540]
    python -m gpu.tune --compile-only             compiles the candidates for sm_90 without a GPU, and says which are out and why
    python -m gpu.tune --dry-run --out FILE       a rehearsal on a CPU

Candidates are compiled in parallel first; those that need more shared memory than there is, or spill registers, are not timed. A candidate
must compute what the present entry computes, and be faster by 2 % to replace it. The table is written after each class.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu.device import Deadline, describe, time_rotating
from gpu.tunables import Params, Tunable, tunables
from quire_kernels import launch_configs
from quire_kernels.launch_configs import trying
from quire_kernels.ops import Ops, load_ops

MAX_SHARED_BYTES = 227 * 1024
WORTH_IT = 0.98
"""Of the present entry's time: a difference that is more than noise."""
COMPILE_LIMIT_S = 180.0
MAX_STACK_BYTES = 16
"""Of a thread: two words, spilled once outside a loop, cost nothing that could be measured; more is a kernel that is too large."""
Job = dict[str, Any]


def main() -> None:
    """Parse, compile, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=launch_configs.TABLE_PATH, help="where the table goes")
    parser.add_argument("--only", default="", help="classes whose name contains this, such as `decode d128`")
    parser.add_argument("--limit-s", type=float, default=540.0, help="of the whole command")
    parser.add_argument("--class-s", type=float, default=40.0, help="of timing one class, at most")
    parser.add_argument("--jobs", type=int, default=max(1, min(14, len(os.sched_getaffinity(0)) - 1)))
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    chosen = [tunable for tunable in tunables(tiny=args.dry_run) if args.only in tunable.name]
    if not chosen:
        sys.exit(f"--only {args.only!r} names no class")
    deadline = Deadline(args.limit_s - 5.0)
    if not (args.dry_run or args.compile_only) and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; without one: --compile-only or --dry-run")
    answers = compile_jobs(jobs_of(chosen), args.jobs, min(COMPILE_LIMIT_S, deadline.left_s))
    for tunable in chosen:
        _print_compiled(tunable, answers)
    if args.compile_only:
        return
    device = torch.device("cpu" if args.dry_run else "cuda")
    bench = Bench(load_ops("cpu" if args.dry_run else "triton"), device, args.class_s)
    kind = describe(device)["kind"]
    table = launch_configs.read_table()
    for tunable in chosen:
        if deadline.left_s <= 0:
            print(f"{tunable.name}: not timed, no time left")
            continue
        best = bench.best_of(tunable, usable(tunable, answers), deadline)
        if best is not None:
            table[tunable.kernel][tunable.shape_class][kind] = dict(best)
        launch_configs.write_table(table, args.out)
    print(f"wrote {args.out}")


def jobs_of(chosen: list[Tunable]) -> list[Job]:
    """Every candidate, and every present entry."""
    return [
        {"kernel": tunable.kernel, "shape_class": tunable.shape_class, "params": dict(params)}
        for tunable in chosen
        for params in (present(tunable), *tunable.candidates)
    ]


def present(tunable: Tunable) -> Params:
    """What this machine's device launches with now."""
    return launch_configs.launch_params(tunable.kernel, tunable.shape_class)


def compile_jobs(jobs: list[Job], processes: int, limit_s: float) -> list[Job]:
    """Answers of gpu.compile_shard; jobs that found no time are missing from them."""
    shares = [share for i in range(processes) if (share := jobs[i::processes])]
    with ThreadPoolExecutor(len(shares)) as pool:
        return [
            answer for answers in pool.map(lambda share: _compile_share(share, limit_s), shares) for answer in answers
        ]


def _compile_share(share: list[Job], limit_s: float) -> list[Job]:
    command = [sys.executable, "-m", "gpu.compile_shard"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(json.dumps(share), timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
    if not output:
        print(f"a compiling process gave nothing: {errors[-500:]}", file=sys.stderr)
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def refusal(answer: Job) -> str | None:
    """Why a candidate is not timed; None: it is."""
    if "error" in answer:
        return str(answer["error"])
    shared = max((kernel["shared_bytes"] for kernel in answer["kernels"]), default=0)
    if shared > MAX_SHARED_BYTES:
        return f"needs {shared} bytes of shared memory"
    spilling = [kernel["name"] for kernel in answer["kernels"] if kernel["stack_bytes"] > MAX_STACK_BYTES]
    return f"{spilling[0]} spills" if spilling else None


def usable(tunable: Tunable, answers: list[Job]) -> list[Params]:
    """Candidates that compiled without refusal, the present entry first whatever was said of it."""
    mine = [a for a in answers if (a["kernel"], a["shape_class"]) == (tunable.kernel, tunable.shape_class)]
    now = dict(present(tunable))
    return [now, *(a["params"] for a in mine if refusal(a) is None and a["params"] != now)]


def _print_compiled(tunable: Tunable, answers: list[Job]) -> None:
    mine = [a for a in answers if (a["kernel"], a["shape_class"]) == (tunable.kernel, tunable.shape_class)]
    reasons = [(a["params"], why) for a in mine if (why := refusal(a)) is not None]
    print(f"{tunable.name}: {len(mine)} compiled, {len(reasons)} out")
    for params, why in reasons:
        print(f"   {params}: {why}", flush=True)


@dataclass(frozen=True)
class Bench:
    """Times candidates."""

    ops: Ops
    device: torch.device
    class_s: float

    def best_of(self, tunable: Tunable, candidates: list[Params], deadline: Deadline) -> Params | None:
        """The fastest, by the mean over workloads of the ratio to the present entry; None if that one could not be timed."""
        limit = Deadline(min(self.class_s, deadline.left_s))
        ratios: dict[int, list[float]] = {i: [] for i in range(len(candidates))}
        for workload in tunable.workloads:
            with torch.inference_mode():
                calls = workload.build(self.ops, self.device)
            base_s, expected = None, None
            for i, params in enumerate(candidates):
                if i and (limit.left_s <= 0 or len(ratios[i]) < len(ratios[0]) - 1):
                    continue
                with torch.inference_mode(), trying(tunable.kernel, tunable.shape_class, params):
                    seconds, result = self._timed(calls)
                if i == 0:
                    base_s, expected = seconds, result
                if seconds is not None and base_s is not None and agrees(result, expected):
                    ratios[i].append(seconds / base_s)
            del calls, expected
        return self._chosen(tunable, candidates, ratios)

    def _timed(self, calls: list[Any]) -> tuple[float | None, object]:
        try:
            result = calls[0]()
            return time_rotating(calls, self.device, budget_s=0.08), result
        except Exception as error:  # noqa: BLE001 - a candidate may ask for more than the device has
            print(f"   raised {type(error).__name__}: {str(error)[:200]}", flush=True)
            return None, None

    def _chosen(self, tunable: Tunable, candidates: list[Params], ratios: dict[int, list[float]]) -> Params | None:
        complete = {i: scores for i, scores in ratios.items() if len(scores) == len(tunable.workloads)}
        if 0 not in complete:
            print(f"{tunable.name}: the present entry {dict(candidates[0])} failed; nothing is changed", flush=True)
            return None
        means = {i: math.exp(sum(map(math.log, scores)) / len(scores)) for i, scores in complete.items()}
        best = min(means, key=lambda i: means[i])
        if means[best] > WORTH_IT:
            best = 0
        detail = ", ".join(f"{w.name} {r:.2f}" for w, r in zip(tunable.workloads, complete[best], strict=True))
        print(f"{tunable.name}: {dict(candidates[best])} of {len(means)} timed; against now: {detail}", flush=True)
        return candidates[best]


def agrees(result: object, expected: object) -> bool:
    """Whether two results are the same but for rounding: a candidate that computes something else is no candidate. Token ids and what is
    changed in place are not looked at here; gpu.check does."""
    if not isinstance(result, Tensor) or not isinstance(expected, Tensor) or not result.is_floating_point():
        return True
    return bool(torch.allclose(result.float(), expected.float(), rtol=2e-2, atol=2e-2))


if __name__ == "__main__":
    main()
