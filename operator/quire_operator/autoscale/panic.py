"""Panic: a burst that is far above what the ready replicas are meant for.

Source: knative/serving pkg/autoscaler/scaling/autoscaler.go: panic when the mean over a short window reaches the threshold, and nothing
goes down until a while after the last such moment.
"""

from quire_operator.autoscale.history import History
from quire_operator.autoscale.policy import Panic, Target
from quire_operator.autoscale.signal import Signal


def panic_until(
    panic: Panic | None, targets: tuple[Target, ...], signal: Signal, history: History, now_s: float
) -> float | None:
    """Until when there is a panic; None: there is none. `history` has the newest demand."""
    if panic is None:
        return None
    each = next((target.value for target in targets if target.metric == "Demand"), None)
    demands = [demand for at_s, demand in history.demands if at_s > now_s - panic.window_s]
    if each and demands and not signal.num_failures:
        mean = sum(demands) / len(demands)
        if mean >= panic.threshold * each * max(1, signal.ready):
            return now_s + panic.hold_s
    until_s = history.panic_until_s
    return until_s if until_s is not None and until_s > now_s else None
