"""How many cores this process may use: affinity and cgroup quota, not the host's count.

Reads /sys/fs/cgroup (v2, then v1). This module must not decide how cores are shared.
"""

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cores(cgroup_root: Path = CGROUP_ROOT) -> int:
    """At least 1. A quota of 1.5 cores counts as 1: a second thread would mostly wait."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2(cgroup_root) or _quota_v1(cgroup_root)
    return max(1, affinity if quota is None else min(affinity, math.floor(quota)))


def threads_per_engine(cores: int, num_engines: int) -> int:
    """Two engines with two threads each on two cores run at a quarter of the speed of one thread each (measured)."""
    return max(1, cores // max(1, num_engines))


def _quota_v2(root: Path) -> float | None:
    parts = _read(root / "cpu.max").split()
    if len(parts) != 2 or parts[0] == "max":
        return None
    return int(parts[0]) / int(parts[1])


def _quota_v1(root: Path) -> float | None:
    quota, period = _read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us")
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
