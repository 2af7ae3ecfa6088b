"""What the device does during some steps: how much of the time nothing, and in which kernels the rest goes."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu.roofline import idle_share

TOP_KERNELS = 14


def profile_steps(run_step: Callable[[], object], steps: int, device: torch.device) -> dict[str, Any]:
    """Busy seconds a step, the idle share inside the profile, and the kernels that take most. Profiling slows launches, so the idle share
    that counts is that of an unprofiled step: 1 - busy / its time.

    On a CPU, in a rehearsal, torch's operators stand in for kernels.
    """
    is_gpu = device.type == "cuda"
    wanted, activity = (DeviceType.CUDA, ProfilerActivity.CUDA) if is_gpu else (DeviceType.CPU, ProfilerActivity.CPU)
    run_step()
    with profile(activities=[activity]) as profiler:
        for _ in range(steps):
            run_step()
        if is_gpu:
            torch.cuda.synchronize()
    intervals: list[tuple[float, float]] = []
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events() or ():
        if event.device_type == wanted:
            intervals.append((event.time_range.start, event.time_range.end))
            by_name[event.name].append(event.time_range.end - event.time_range.start)
    if not intervals:
        raise RuntimeError("the profiler saw no kernel")
    span_us = max((end for _, end in intervals), default=0.0) - min((start for start, _ in intervals), default=0.0)
    idle = idle_share(intervals)
    top = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:TOP_KERNELS]
    return {
        "steps": steps,
        "busy_s": span_us * (1 - idle) / 1e6 / steps,
        "idle_share_profiled": idle,
        "kernels_per_step": len(intervals) / steps,
        "top": [
            {"name": name[:90], "calls_per_step": len(times) / steps, "us_per_step": sum(times) / steps}
            for name, times in top
        ],
    }
