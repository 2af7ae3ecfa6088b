"""Runs one shard of gpu.check in a process of its own: a verdict a line, as JSON, on standard output.

python -m gpu.check_shard SHARD --device cuda [--interpret] [--small]
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

import torch

from gpu.cases import Verdict
from gpu.interpreter import use_interpreter
from gpu.suite import ENGINE, cases_of


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shard")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--ops", default="triton")
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.interpret:
        use_interpreter()
    torch.set_num_threads(2)
    device = torch.device(args.device)
    for verdict in _verdicts(args.shard, device, args.ops, small=args.small):
        print(json.dumps(asdict(verdict)), flush=True)


def _verdicts(shard: str, device: torch.device, ops: str, *, small: bool) -> Iterator[Verdict]:
    if shard.startswith(ENGINE):
        from gpu.parity import FULL, SMALL, engine_verdicts

        yield from engine_verdicts(shard.removeprefix(ENGINE), device, ops, SMALL if small else FULL)
        return
    from gpu.cases import examine
    from quire_kernels.ops import load_ops

    match ops:
        case "triton" | "cpu" | "reference":
            device_ops, reference = load_ops(ops), load_ops("reference")
        case _:
            raise SystemExit(f"--ops {ops} is unknown: use triton, cpu or reference")
    for case in cases_of(shard, small=small):
        yield examine(case, device_ops, reference, device)


if __name__ == "__main__":
    main()
