"""Checks every Triton kernel against its reference, and the engine against its oracles, on the GPU. Exit code 0: everything passed.

    python -m gpu.check [--only TEXT] [--out FILE] [--jobs N] [--limit-s 500]
    python -m gpu.check --device cpu --interpret        a rehearsal without a GPU: small shapes through Triton's interpreter

Each shard (an operation, or a model) is a process of its own: kernels compile in parallel, and one that hangs or spoils the
device fails alone.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from gpu.cases import Verdict
from gpu.device import Deadline, describe, write_json
from gpu.suite import Shard, ops_without_cases, shards

LIMIT_S = 500.0
INTERPRETER_LIMIT_S = 3000.0
SHARD_LIMIT_S = 240.0
"""Of one shard; five times as much through the interpreter."""
SPARE_S = 5.0
"""Kept for the report."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How shards are run."""

    device: str
    ops: str
    interpret: bool
    small: bool
    jobs: int


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--ops", choices=["triton", "cpu", "reference"], default="triton")
    parser.add_argument("--interpret", action="store_true", help="Triton's interpreter, on the CPU; implies --small")
    parser.add_argument("--small", action="store_true", help="small shapes and few models")
    parser.add_argument("--only", default="", help="shards whose name contains this")
    parser.add_argument("--no-engine", action="store_true", help="kernels only")
    parser.add_argument("--jobs", type=int, default=max(1, min(12, len(os.sched_getaffinity(0)) - 2)))
    parser.add_argument("--limit-s", type=float, help="of the whole command; 500, or 3,000 for the interpreter")
    parser.add_argument("--out", type=Path, help="write the verdicts as JSON, again after each shard")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; a rehearsal without one: --device cpu --interpret")
    setting = Setting(
        device=args.device,
        ops=args.ops,
        interpret=args.interpret,
        small=args.small or args.interpret,
        jobs=args.jobs,
    )
    chosen = [shard for shard in shards(small=setting.small, engine=not args.no_engine) if args.only in shard.name]
    if not chosen:
        sys.exit(f"--only {args.only!r} names no shard")
    limit_s = args.limit_s or (INTERPRETER_LIMIT_S if args.interpret else LIMIT_S)
    sys.exit(run(chosen, setting, Deadline(limit_s - SPARE_S), args.out))


def run(chosen: list[Shard], setting: Setting, deadline: Deadline, out: Path | None) -> int:
    """All shards; returns the exit code."""
    started = time.monotonic()
    report = Report(describe(torch.device(setting.device)), out)
    for name in ops_without_cases():
        verdict = Verdict(op=name, name="has cases", passes=False, error=None, units=None, seconds=0.0)
        report.add("coverage", [verdict])
    with ThreadPoolExecutor(setting.jobs) as pool:
        for shard in chosen:
            pool.submit(_guarded, report, shard, setting, deadline)
    return report.finish(time.monotonic() - started)


class Report:
    """Verdicts as they come; printed and written from several threads."""

    def __init__(self, facts: dict[str, object], out: Path | None) -> None:
        self._facts = facts
        self._out = out
        self._verdicts: list[Verdict] = []
        self._lock = threading.Lock()
        print(json.dumps(facts, indent=1), flush=True)

    def add(self, shard: str, verdicts: list[Verdict]) -> None:
        """Of one shard."""
        with self._lock:
            self._verdicts += verdicts
            for verdict in verdicts:
                print(_line(verdict), flush=True)
            self._write(is_complete=False)

    def finish(self, seconds: float) -> int:
        """The exit code; prints what failed once more, so that the end of the output says it."""
        failed = [verdict for verdict in self._verdicts if not verdict.passes]
        self._write(is_complete=True)
        print(f"\n{len(self._verdicts)} checks, {len(failed)} failed, {seconds:.0f} s")
        for verdict in failed[:60]:
            print(_line(verdict))
        return 1 if failed or not self._verdicts else 0

    def _write(self, *, is_complete: bool) -> None:
        if self._out is not None:
            verdicts = [asdict(verdict) for verdict in self._verdicts]
            write_json(self._out, {"complete": is_complete, "device": self._facts, "verdicts": verdicts})


def _line(verdict: Verdict) -> str:
    error = "" if verdict.error is None else f"max error {verdict.error:.3g}"
    units = "" if verdict.units is None else f" = {verdict.units:.2f} of what is allowed"
    word = "pass" if verdict.passes else "FAIL"
    details = "  ".join(part for part in (error + units, verdict.message) if part)
    return f"{word}  {verdict.op:16} {verdict.name:58} {details}  ({verdict.seconds:.1f} s)"


def _guarded(report: Report, shard: Shard, setting: Setting, deadline: Deadline) -> None:
    try:
        verdicts = run_shard(
            shard, command_of(shard, setting), min(SHARD_LIMIT_S * (5 if setting.interpret else 1), deadline.left_s)
        )
    except Exception as error:  # noqa: BLE001 - a thread's exception would be lost
        verdicts = missing_verdicts(shard, [], f"the check itself failed: {type(error).__name__}: {error}", 0.0)
    report.add(shard.name, verdicts)


def command_of(shard: Shard, setting: Setting) -> list[str]:
    """The shard's process."""
    command = [sys.executable, "-m", "gpu.check_shard", shard.name, "--device", setting.device, "--ops", setting.ops]
    return command + ["--interpret"] * setting.interpret + ["--small"] * setting.small


def run_shard(shard: Shard, command: list[str], limit_s: float) -> list[Verdict]:
    """Its verdicts, failures in place of those that did not come: a hang or a crash fails what was still to be checked."""
    start = time.monotonic()
    if limit_s <= 0:
        return missing_verdicts(shard, [], "not run: the command's time was over", 0.0)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=limit_s)
        reason = f"the process ended with code {process.returncode}: {last_lines(errors)}"
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        reason = f"timed out after {limit_s:.0f} s"
    came = [Verdict(**json.loads(line)) for line in output.splitlines() if line.startswith("{")]
    return came + missing_verdicts(shard, came, reason, time.monotonic() - start)


def missing_verdicts(shard: Shard, came: list[Verdict], reason: str, seconds: float) -> list[Verdict]:
    """A failure for each check that reported nothing; only the first gives the reason at length."""
    known = {(verdict.op, verdict.name) for verdict in came}
    absent = [check for check in shard.checks if check not in known]
    return [
        Verdict(
            op=op, name=name, passes=False, error=None, units=None, seconds=seconds, message="as above" if i else reason
        )
        for i, (op, name) in enumerate(absent)
    ]


def last_lines(text: str, count: int = 3) -> str:
    """The end of a traceback, on one line."""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-count:])[:600]


if __name__ == "__main__":
    main()
