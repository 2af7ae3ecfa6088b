"""A metric's reading as rules see it: nothing that is no number, nothing below zero, nothing that is too old."""

import math

from quire_operator.autoscale.policy import TOTALS, Metric
from quire_operator.autoscale.signal import Signal


def reading_of(signal: Signal, metric: Metric) -> float | None:
    """None: unknown. What there was no reason to measure is zero, which is known. (KEDA takes negative values for zero too.)"""
    if metric in TOTALS and signal.num_failures:
        return None
    reading = signal.readings.get(metric)
    if reading is None:
        return 0.0 if metric in signal.idle else None
    return max(0.0, reading) if math.isfinite(reading) else None
