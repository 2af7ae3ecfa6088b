"""Makes the policy that a name stands for."""

from collections.abc import Callable

from quire_worker.kv.block_manager import BlockManager
from quire_worker.scheduling.policy import FCFS, PRIORITY, ByPriority, FirstComeFirstServed, Policy
from quire_worker.scheduling.shortest_first import ShortestFirst
from quire_worker.scheduling.speeds import StepSpeeds


def make_policy(name: str, kv: BlockManager, speeds: StepSpeeds, clock: Callable[[], float], aging_s: float) -> Policy:
    """The policy called `name`, one of policy.POLICIES. `aging_s` bounds by how much a choice may be overtaken."""
    if name == FCFS:
        return FirstComeFirstServed()
    if name == PRIORITY:
        return ByPriority(aging_s)
    return ShortestFirst(kv, speeds, clock, aging_s)
