"""No replica goes whose requests' KV would not fit on the others: they would preempt each other, or the move would fail."""

import math

from quire_operator.autoscale.policy import Policy
from quire_operator.autoscale.signal import Signal
from quire_operator.autoscale.step import Step, count


def keep_kv(step: Step, signal: Signal, policy: Policy) -> Step:
    """Down only as far as the KV in use fills at most `max_kv_fill` of what stays. Unknown KV vetoes nothing."""
    used, each = signal.kv_used_tokens, signal.kv_tokens_per_replica
    if step.replicas >= signal.replicas or not used or not each or not policy.max_kv_fill:
        return step
    needed = min(signal.replicas, math.ceil(round(used / (policy.max_kv_fill * each), 9)))
    if needed <= step.replicas:
        return step
    words = f"{used} tokens of KV in use need {count(needed)} of {each} tokens each, filled to {policy.max_kv_fill:.0%} at most"
    return step.then(needed, "KvWouldNotFit", words, is_limited=True)
