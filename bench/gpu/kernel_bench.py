"""Times single operations and sets them against their floors."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from gpu.device import Deadline, host_seconds, time_rotating
from gpu.roofline import Rates
from gpu.workloads import Workload
from quire_kernels.ops import Ops


def time_workloads(
    workloads: Iterable[Workload], ops: Ops, device: torch.device, rates: Rates, deadline: Deadline
) -> Iterator[dict[str, Any]]:
    """A row of the table for each; what raises, or comes after the deadline, says so in its row."""
    for workload in workloads:
        row: dict[str, Any] = {
            "op": workload.op,
            "name": workload.name,
            "size_bytes": workload.size_bytes,
            "flops": workload.flops,
            "floor_us": workload.floor_s(rates) * 1e6,
        }
        if deadline.left_s <= 0:
            yield row | {"note": "not run: no time left"}
            continue
        try:
            yield row | _timed(workload, ops, device, rates)
        except Exception as error:  # noqa: BLE001 - one kernel's failure must not cost the other figures
            yield row | {"note": f"{type(error).__name__}: {error}"[:300]}
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _timed(workload: Workload, ops: Ops, device: torch.device, rates: Rates) -> dict[str, Any]:
    with torch.inference_mode():
        calls = workload.build(ops, device)
        seconds = time_rotating(calls, device)
        host_s = host_seconds(calls[0], device)
    return {
        "time_us": seconds * 1e6,
        "host_us": host_s * 1e6,
        "share_of_roofline": workload.floor_s(rates) / seconds,
        "bytes_per_s": workload.size_bytes / seconds,
        "flops_per_s": workload.flops / seconds,
    }
