"""`decide`: how many replicas there should be. Pure: the same arguments, the same answer."""

from quire_operator.autoscale.history import History
from quire_operator.autoscale.policy import Policy
from quire_operator.autoscale.signal import Signal
from quire_operator.autoscale.verdict import Verdict


def decide(signal: Signal, policy: Policy, history: History, now_s: float) -> Verdict:
    """What /scale should say now. `now_s` is Unix time in seconds: schedules need the date."""
    raise NotImplementedError
