"""How many requests one replica is meant to work on where the service does not say: what its engine can run at once, less a reserve. Pure.

An engine runs at most so many requests as its batch has rows (`capacity`), and as fit into its KV cache: that, not the rows, is what bounds
long prompts and long answers. How much KV a request takes is learnt from those that run. Of the smaller of the two a share is the target:
the rest takes what comes while the next replica loads, and a batch that is not full answers sooner.
Measured in docs/benchmarks/simulate.md, part "Policies".
"""

from dataclasses import replace
from typing import Final

from quire_operator.autoscale.history import History
from quire_operator.autoscale.signal import Signal

COMFORT: Final = 0.7
"""Share of what a replica can run at once; the usual one of targets on utilisation."""
LIFE_S: Final = 600.0
"""What was learnt of requests' KV falls so slowly: those that have just begun hold little yet and would make room seem endless."""
_FEWEST = 4
"""Requests running, below which nothing is learnt of them."""


def learn(history: History, signal: Signal, now_s: float) -> History:
    """With what this reading tells of a replica's capacity and of its requests' KV."""
    history = replace(
        history,
        capacity=signal.capacity or history.capacity,
        kv_tokens_per_replica=signal.kv_tokens_per_replica or history.kv_tokens_per_replica,
    )
    demand, queued = signal.readings.get("Demand"), signal.readings.get("QueueLength")
    if demand is None or queued is None or signal.num_failures or not signal.kv_used_tokens:
        return history
    if demand - queued < _FEWEST:
        return history
    seen = signal.kv_used_tokens / (demand - queued)
    known, since_s = history.request_kv_tokens, history.request_kv_s
    if known is None or since_s is None or seen >= known:
        return replace(history, request_kv_tokens=seen, request_kv_s=now_s)
    share = min(1.0, max(0.0, now_s - since_s) / LIFE_S)
    return replace(history, request_kv_tokens=known + share * (seen - known), request_kv_s=now_s)


def comfortable(history: History) -> float | None:
    """Requests per replica; None while no engine has told its capacity."""
    if history.capacity is None:
        return None
    most = float(history.capacity)
    if history.kv_tokens_per_replica and history.request_kv_tokens:
        most = min(most, history.kv_tokens_per_replica / history.request_kv_tokens)
    return max(1.0, round(COMFORT * most, 1))
