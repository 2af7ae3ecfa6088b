"""Benchmarks the engine on the GPU on the Llama-3-8B shape with random weights, against the machine's own roofline.

    python -m gpu.bench [--out DIR] [--limit-s 510] [--parts calibrate,decode,...]
    python -m gpu.bench --dry-run                 a rehearsal on a CPU with a tiny model: every line but the device's runs

Writes gpu-bench.json and gpu-bench.md after each part, so that a run that is cut off leaves what it has. Exit code 0 if everything ran,
whatever the figures say; 1 if a part failed.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gpu.calibrate import Ceilings, calibrate
from gpu.device import Deadline, describe, smi, write_json
from gpu.kernel_bench import time_workloads
from gpu.measure import Ladder, Saturation, decode_ladder, first_token, prefill, saturate
from gpu.models import random_weights
from gpu.profile import profile_steps
from gpu.report import markdown
from gpu.roofline import model_cost
from gpu.sides import Side
from gpu.sizes import LLAMA_3_8B, REHEARSAL, Sizes
from gpu.workloads import model_workloads
from quire_kernels.ops import OpsName, load_ops
from quire_worker.execution.options import RunnerOptions

PARTS = ("calibrate", "prefill", "first-token", "decode", "saturation", "kernels")


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is measured, and on what."""

    name: str
    sizes: Sizes
    device: torch.device
    ops: OpsName
    ladder: Ladder
    prompts: tuple[int, ...]
    prefill_runs: int
    first_token_prompt: int
    saturations: tuple[Saturation, ...]
    profiled: tuple[int, ...]
    """Batches whose decode steps are profiled."""
    kernel_batches: tuple[int, ...]
    kernel_seconds: float
    calibration_bytes: int
    options: dict[str, Any]
    """Of the runner, beyond device, dtype and ops."""


REAL = Program(
    name="Llama-3-8B shape",
    sizes=LLAMA_3_8B,
    device=torch.device("cuda"),
    ops="triton",
    ladder=Ladder(),
    prompts=(2048, 8192),
    prefill_runs=5,
    first_token_prompt=232,
    saturations=(
        Saturation(prompt=1000, output=1000, seconds=40.0),
        Saturation(prompt=200, output=200, seconds=12.0),
        Saturation(prompt=200, output=200, seconds=12.0, caching=True),
    ),
    profiled=(1, 64, 256),
    kernel_batches=(1, 8, 64, 256),
    kernel_seconds=120.0,
    calibration_bytes=4 << 30,
    options={"max_num_seqs": 512, "max_num_batched_tokens": 8192},
)
DRY = Program(
    name="rehearsal",
    sizes=REHEARSAL,
    device=torch.device("cpu"),
    ops="cpu",
    ladder=Ladder(batches=(1, 2), context=20, chunks=2, steps=2),
    prompts=(16, 32),
    prefill_runs=1,
    first_token_prompt=8,
    saturations=(
        Saturation(prompt=10, output=10, seconds=0.2),
        Saturation(prompt=10, output=10, seconds=0.2, caching=True),
    ),
    profiled=(1,),
    kernel_batches=(1, 2),
    kernel_seconds=60.0,
    calibration_bytes=1 << 16,
    options={"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_gpu_blocks_override": 600, "compute_threads": 1},
)


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the results")
    parser.add_argument("--limit-s", type=float, default=510.0, help="of the whole command")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"--parts {','.join(sorted(unknown))} is unknown; choose of {','.join(PARTS)}")
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; a rehearsal without one: --dry-run")
    bench = Bench(DRY if args.dry_run else REAL, args.out, Deadline(args.limit_s))
    sys.exit(bench.run(parts))


class Bench:
    """One run. Results grow in one dictionary, which is written after each part."""

    def __init__(self, program: Program, out: Path, deadline: Deadline) -> None:
        self._program = program
        self._out = out
        self._deadline = deadline
        self._started = time.monotonic()
        self._results: dict[str, Any] = {
            "complete": False,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "device": describe(program.device),
            "errors": {},
            "seconds": {},
        }
        self._ceilings: Ceilings | None = None

    def run(self, parts: list[str]) -> int:
        """The exit code."""
        print(json.dumps(self._results["device"], indent=1), flush=True)
        self._part("calibrate", self._calibrate)
        with tempfile.TemporaryDirectory() as folder:
            side = self._load(Path(folder))
            if side is not None:
                engine_parts = {
                    "prefill": self._prefill,
                    "first-token": self._first_token,
                    "decode": self._decode,
                    "saturation": self._saturation,
                }
                for name, run in engine_parts.items():
                    if name in parts:
                        self._part(name, _bound(run, side))
                side.close()
                del side
        if self._program.device.type == "cuda":
            torch.cuda.empty_cache()
        if "kernels" in parts:
            self._part("kernels", self._kernels)
        self._results["complete"] = True
        self._write()
        print((self._out / "gpu-bench.md").read_text() if (self._out / "gpu-bench.md").exists() else "no report")
        return 1 if self._results["errors"] else 0

    def _part(self, name: str, run: Callable[[], None]) -> None:
        """A part that fails leaves its error in the results, and the others their chance."""
        start = time.monotonic()
        print(f"== {name} ({self._deadline.left_s:.0f} s left)", flush=True)
        try:
            run()
        except Exception as error:  # noqa: BLE001 - see above
            traceback.print_exc()
            self._results["errors"][name] = f"{type(error).__name__}: {error}"[:400].replace("\n", " ")
        self._results["seconds"][name] = round(time.monotonic() - start, 1)
        self._write()

    def _write(self) -> None:
        write_json(self._out / "gpu-bench.json", self._results)
        if "ceilings" in self._results and "model" in self._results:
            report = markdown(self._results, model_cost(self._program.sizes))
            (self._out / "gpu-bench.md").write_text(report)

    # ---- parts

    def _calibrate(self) -> None:
        program = self._program
        is_gpu = program.device.type == "cuda"
        self._ceilings = calibrate(program.device, size_bytes=program.calibration_bytes, with_triton=is_gpu)
        rates = self._ceilings.rates
        self._results["ceilings"] = self._ceilings.as_json() | {
            "rates": {"read_bytes_per_s": rates.read_bytes_per_s, "flops_per_s": rates.flops_per_s}
        }
        print(json.dumps(self._results["ceilings"]), flush=True)
        if is_gpu:
            torch.cuda.empty_cache()

    def _load(self, folder: Path) -> Side | None:
        loaded: list[Side] = []

        def load() -> None:
            program = self._program
            (folder / "config.json").write_text(json.dumps(program.sizes.config("bfloat16")))
            options = RunnerOptions(
                model_dir=folder,
                device=program.device.type,
                dtype="bfloat16",
                ops=program.ops,
                **program.options,
            )
            side = Side(options, random_weights(program.sizes, program.device, torch.bfloat16))
            loaded.append(side)
            info = side.info
            self._results["model"] = {
                "name": program.name,
                "num_parameters": info.num_parameters,
                "dtype": info.dtype,
                "kv_tokens": (info.num_blocks - 1) // len(info.groups) * info.block_size,
                "max_model_len": info.max_model_len,
                "phases_s": info.phases_s,
            }

        self._part("load", load)
        return loaded[0] if loaded else None

    def _prefill(self, side: Side) -> None:
        self._results["prefill"] = []
        for num_tokens in self._program.prompts:
            found = prefill(side, num_tokens, self._program.prefill_runs)
            self._results["prefill"].append(found)
            print(f"prefill {num_tokens}: {found['tokens_per_s']:,.0f} tok/s", flush=True)

    def _first_token(self, side: Side) -> None:
        found = first_token(side, self._program.first_token_prompt, runs=10)
        self._results["first_token"] = found
        print(f"first token: {found['seconds'] * 1e3:.2f} ms", flush=True)

    def _decode(self, side: Side) -> None:
        program = self._program
        self._results["decode"], self._results["profiles"] = [], []
        for found, load in decode_ladder(side, program.ladder, self._deadline):
            self._results["decode"].append(found)
            print(f"decode {found['batch']} rows: {found['step_s'] * 1e3:.3f} ms a step", flush=True)
            if found["batch"] in program.profiled:
                self._results["profiles"].append(self._profiled(found, load.step))
            self._write()
        self._results["smi_under_load"] = smi()

    def _profiled(self, found: dict[str, Any], step: Callable[[], object]) -> dict[str, Any]:
        """What profiling raises (a machine may forbid it) is a note, no failure of the part."""
        try:
            profile = profile_steps(step, 8, self._program.device)
        except Exception as error:  # noqa: BLE001 - see above
            return {"batch": found["batch"], "note": f"the profiler failed: {type(error).__name__}: {error}"[:300]}
        idle = max(0.0, 1 - profile["busy_s"] / found["step_s"])
        return profile | {"batch": found["batch"], "step_s": found["step_s"], "idle_share": idle}

    def _saturation(self, side: Side) -> None:
        self._results["saturation"] = []
        for wanted in self._program.saturations:
            found = saturate(side, wanted, self._deadline)
            self._results["saturation"].append(found)
            print(f"{wanted.prompt}/{wanted.output}: {found['tokens_per_s']:,.0f} output tok/s", flush=True)
            self._write()

    def _kernels(self) -> None:
        program = self._program
        assert self._ceilings is not None, "calibration failed, so there is no roofline"
        self._results["kernels"] = []
        limit = Deadline(min(program.kernel_seconds, self._deadline.left_s - 5.0))
        workloads = model_workloads(program.sizes, batches=program.kernel_batches, prompts=program.prompts)
        for row in time_workloads(workloads, load_ops(program.ops), program.device, self._ceilings.rates, limit):
            self._results["kernels"].append(row)
            self._write()


def _bound(run: Callable[[Side], None], side: Side) -> Callable[[], None]:
    return lambda: run(side)


if __name__ == "__main__":
    main()
