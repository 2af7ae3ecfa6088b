"""Compiles candidates for sm_90 in a process of its own: reads a JSON list of jobs from standard input, prints a JSON line for each.

    job     {"kernel": ..., "shape_class": ..., "params": {...}}
    answer  the job and {"kernels": [...]} as gpu.offline measured them, or {"error": ...}

Needs no GPU, but fills the cache that one looks into.
"""

import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from gpu.offline import compiled_by
from gpu.tunables import entry_workload, tunables
from gpu.workloads import Workload
from quire_kernels.launch_configs import trying
from quire_kernels.ops import Ops, load_ops


def main() -> None:
    """Read, compile, print."""
    torch.set_num_threads(1)
    ops, small = load_ops("triton"), {(t.kernel, t.shape_class): t.small for t in tunables()}
    for job in json.load(sys.stdin):
        key = (job["kernel"], job["shape_class"])
        known = entry_workload(*key)
        workloads = small.get(key) or (() if known is None else (known,))
        answer = _compiled(job, workloads, ops) if workloads else {"error": "nothing here launches this kernel"}
        print(json.dumps(job | answer), flush=True)


def _build_and_call(workloads: tuple[Workload, ...], ops: Ops) -> None:
    """Building may launch, too: attention plans."""
    for workload in workloads:
        workload.build(ops, torch.device("cpu"))[0]()


def _compiled(job: dict[str, Any], workloads: tuple[Workload, ...], ops: Ops) -> dict[str, Any]:
    try:
        with torch.inference_mode(), trying(job["kernel"], job["shape_class"], job["params"]):
            found = compiled_by(lambda: _build_and_call(workloads, ops))
    except Exception as error:  # noqa: BLE001 - a candidate that does not compile is an answer
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"kernels": [asdict(kernel) for kernel in found]}


if __name__ == "__main__":
    main()
