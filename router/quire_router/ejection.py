"""When a worker that keeps failing is left out of the choice for a while, and how it comes back. Pure functions of its health and the time.

    in  --consecutive_failures in a row-->  out for ejection_s x 2^n  -->  trial: one request at a time
    in  <--it is answered-------------------------------------------------  trial
                                            out, twice as long  <--it fails--  trial

A failure: no connection, a reset, a timeout, an answer of 5xx but for a worker that drains or is full; a stream that breaks. A success: an
answer that ended well; of a trial, one that began. What a client or a tenant does wrong is neither.

One fault may hit hundreds of requests at once: those that overlap and fail within a second of each other count as one, so that a worker
which lost its connections once is not taken for one that keeps failing. At most a share of a model's usable workers is out, those that
went first: when all fail, the fault is not theirs.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from quire_contract.router_settings import FaultSettings

SAME_FAULT_S = 1.0
MAX_DOUBLINGS = 4
FORGET_AFTER = 16.0
"""A worker that was in for so many times ejection_s begins anew with the shortest time out."""

Stage = Literal["in", "out", "trial"]


class Health(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is remembered of one worker. Times are seconds of the process's monotonic clock."""

    failures: int = 0
    """Faults in a row."""
    last_failure_s: float = -math.inf
    is_ejected: bool = False
    num_ejections: int = 0
    """One after the other; decides how long the next one is."""
    since_s: float = -math.inf
    """When it went out; a trial that fails does not change it."""
    until_s: float = -math.inf
    """Until when it is out, or was."""


class Member(msgspec.Struct, frozen=True, gc=False):
    """A usable worker of a model."""

    id: str
    health: Health
    on_trial: bool
    """A request decides about it now."""


def stage_of(health: Health, now_s: float) -> Stage:
    """Where a worker stands."""
    if not health.is_ejected:
        return "in"
    return "out" if now_s < health.until_s else "trial"


def after_failure(health: Health, started_s: float, now_s: float, settings: FaultSettings) -> Health:
    """A request that was sent at `started_s` failed now."""
    if health.is_ejected:
        # Only what was sent after the time out tells something new.
        return health if started_s < health.until_s else _ejected(health, now_s, settings)
    is_same_fault = started_s < health.last_failure_s and now_s - health.last_failure_s < SAME_FAULT_S
    failures = health.failures if is_same_fault else health.failures + 1
    after = msgspec.structs.replace(
        health, failures=failures, last_failure_s=health.last_failure_s if is_same_fault else now_s
    )
    limit = settings.consecutive_failures
    return _ejected(after, now_s, settings) if limit and failures >= limit else after


def after_success(health: Health, started_s: float) -> Health:
    """A request that was sent at `started_s` was answered."""
    if health.is_ejected:
        return health if started_s < health.since_s else msgspec.structs.replace(health, failures=0, is_ejected=False)
    return msgspec.structs.replace(health, failures=0) if health.failures else health


def left_out(members: Sequence[Member], now_s: float, settings: FaultSettings, *, may_try: bool) -> frozenset[str]:
    """Ids of the members that get no request now. `may_try`: this request may be a trial, as it could be sent again elsewhere."""
    out = [member for member in members if member.health.is_ejected]
    if not out:
        return frozenset()
    most = math.floor(len(members) * min(settings.max_ejected_percent, 100) / 100)
    out.sort(key=lambda member: member.health.since_s)
    return frozenset(
        member.id for member in out[:most] if stage_of(member.health, now_s) == "out" or member.on_trial or not may_try
    )


def _ejected(health: Health, now_s: float, settings: FaultSettings) -> Health:
    """Out, longer each time."""
    was_well = now_s - health.until_s > FORGET_AFTER * settings.ejection_s
    number = 0 if was_well else health.num_ejections
    out_s = settings.ejection_s * 2 ** min(number, MAX_DOUBLINGS)
    return Health(
        is_ejected=True,
        num_ejections=number + 1,
        since_s=health.since_s if health.is_ejected else now_s,
        until_s=now_s + out_s,
        last_failure_s=now_s,
    )
