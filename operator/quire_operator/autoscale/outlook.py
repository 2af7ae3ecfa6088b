"""What one start from now will need: how demand is read where no targets are configured.

Demand alone says too much in a burst: while replicas start, requests pile up that the replicas on their way will work off without any
more of them. So this asks how many requests there will be at once when a replica that is asked for now is ready:

    busy      arrivals per second x seconds that a request takes (Little's law)
    backlog   what waits then: what waits now, and what arrives until then beyond what the replicas on hand finish
    at once   busy + backlog x seconds per request / seconds in which the backlog shall be gone
              + the square root of that, for requests do not arrive evenly

never more than demand is, never fewer than run now. Seconds per request and tokens of KV per request are learned from what runs and what
finishes. Whatever is not known yet makes it silent, and demand counts as it is.
"""

import math
from dataclasses import dataclass, replace

from quire_operator.autoscale.reading import reading_of
from quire_operator.autoscale.signal import Signal

MEMORY_S = 300.0
"""Older observations weigh less: by e after so long."""
GAP_S = 60.0
"""Observations further apart say nothing of the time between them."""
ENOUGH = 20.0
"""Requests that must have finished before their mean is believed."""
MIN_DRAIN_S, MAX_DRAIN_S = 5.0, 30.0
"""A backlog shall be gone in half a start, within these bounds: a replica that comes too late for it is not worth its start."""
COMFORT = 0.65
"""Share of what a replica can run at once that it is meant to."""
LOADING_SHARE = 0.5
"""What is asked for already works for half of the time until then, on the average."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Sums over time with fading memory, and the means that they gave when there was enough."""

    at_s: float
    demand: float
    running_s: float = 0.0
    """Requests that ran, times seconds."""
    finished: float = 0.0
    kv_s: float = 0.0
    """Tokens of KV in use, times seconds."""
    service_s: float | None = None
    """Seconds that a request takes once it runs."""
    kv_tokens: float | None = None
    """KV of a request that runs, over its life."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """How many requests at once, and why."""

    demand: float
    words: str


def learn(before: Learned | None, signal: Signal, now_s: float) -> Learned | None:
    """With one more observation; as before if demand, queue or arrivals are unknown."""
    demand, queued, arrivals = _load(signal)
    if demand is None or queued is None or arrivals is None:
        return before
    if before is None:
        return Learned(at_s=now_s, demand=demand)
    seconds = now_s - before.at_s
    if not 0.0 < seconds <= GAP_S:
        return replace(before, at_s=now_s, demand=demand)
    fade, running = math.exp(-seconds / MEMORY_S), max(0.0, demand - queued)
    running_s = before.running_s * fade + running * seconds
    finished = before.finished * fade + max(0.0, arrivals * seconds - (demand - before.demand))
    kv_s = before.kv_s * fade + (signal.kv_used_tokens or 0) * seconds
    is_enough = finished >= ENOUGH and running_s > 0.0
    return Learned(
        at_s=now_s,
        demand=demand,
        running_s=running_s,
        finished=finished,
        kv_s=kv_s,
        service_s=running_s / finished if is_enough else before.service_s,
        kv_tokens=kv_s / running_s if is_enough else before.kv_tokens,
    )


def _load(signal: Signal) -> tuple[float | None, float | None, float | None]:
    """Demand, queue, arrivals per second; a lower bound is not enough."""
    if signal.num_failures:
        return None, None, None
    return reading_of(signal, "Demand"), reading_of(signal, "QueueLength"), signal.arrivals_per_s


def comfortable(each: float, learned: Learned | None = None, kv_tokens: int | None = None) -> float:
    """How many requests one replica is meant to work on that could run `each` at once: a share of that, or of the requests of the
    usual size that fit into its `kv_tokens`, where these are fewer. The rest takes what comes while the next one starts. At least one."""
    if learned is not None and learned.kv_tokens and kv_tokens:
        each = min(each, kv_tokens / learned.kv_tokens)
    return max(1.0, round(COMFORT * each, 1))


def look_ahead(learned: Learned | None, signal: Signal, each: float, start_s: float | None) -> Outlook | None:
    """Requests at once when a start of `start_s` would be over, at `each` of them a replica; None: too little is known."""
    demand, queued, arrivals = _load(signal)
    if learned is None or learned.service_s is None or start_s is None:
        return None
    if demand is None or queued is None or arrivals is None:
        return None
    service_s, running = learned.service_s, max(0.0, demand - queued)
    slots = each * (signal.ready + LOADING_SHARE * signal.loading)
    backlog = max(0.0, queued + (arrivals - slots / service_s) * start_s)
    at_once = arrivals * service_s + backlog * service_s / min(max(start_s / 2, MIN_DRAIN_S), MAX_DRAIN_S)
    at_once += math.sqrt(at_once)
    words = f"{arrivals:.3g} requests per s take {service_s:.3g} s each"
    if backlog:
        words += f", after a start of {start_s:.0f} s {backlog:.0f} will wait"
    return Outlook(demand=max(running, min(at_once, demand)), words=f"demand {demand:g}, {words}")
