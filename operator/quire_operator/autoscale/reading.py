"""A metric's reading as rules see it: nothing that is no number, nothing below zero."""

import math

from quire_operator.autoscale.policy import Metric
from quire_operator.autoscale.signal import Signal


def reading_of(signal: Signal, metric: Metric) -> float | None:
    """None: unknown. What there was no reason to measure is zero, which is known. (KEDA takes negative values for zero too.)

    Of a total in a reading that failed it is a lower bound, of those that answered: enough to add a replica, not to take one away.
    """
    reading = signal.readings.get(metric)
    if reading is None:
        return 0.0 if metric in signal.idle else None
    return max(0.0, reading) if math.isfinite(reading) else None
