"""What counts while demand is unknown: KEDA's fallback.

Source: kedacore/keda pkg/fallback/fallback.go. It takes the place of the unknown metric's recommendation, so windows and limits hold for
it as for any other. Unlike KEDA's it never leads to zero.
"""

from quire_operator.autoscale.policy import Policy
from quire_operator.autoscale.recommend import Ask, is_within
from quire_operator.autoscale.signal import Signal
from quire_operator.autoscale.step import count


def fall_back(policy: Policy, signal: Signal) -> Ask | None:
    """What it asks for; None: there is none, or not enough readings have failed. A number within the tolerance changes nothing."""
    fallback = policy.fallback
    if fallback is None or signal.num_failures <= fallback.failure_threshold:
        return None
    current, fixed = signal.replicas, fallback.replicas
    match fallback.behavior:
        case "Static":
            replicas = fixed
        case "CurrentReplicas":
            replicas = current
        case "CurrentReplicasIfHigher":
            replicas = max(current, fixed)
        case "CurrentReplicasIfLower":
            replicas = min(current, fixed)
    words = f"{signal.num_failures} readings of demand failed, fallback {fallback.behavior} asks for {count(replicas)}"
    if is_within(policy, replicas / current):
        return Ask(replicas=current, words=f"{words}, within the tolerance of {count(current)}", is_within=True)
    return Ask(replicas=replicas, words=words)
