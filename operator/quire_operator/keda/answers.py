"""What a trigger is answered at one reading. Pure; this module must not know gRPC, routers or time.

A demand that is not known is never a zero: the answer is an error, so that KEDA's fallback applies and nothing goes down. What is known
of it may wake a service all the same, for it is a lower bound.
"""

from collections.abc import Mapping

from quire_operator.autoscale.aggregate import Reading
from quire_operator.autoscale.policy import Metric
from quire_operator.keda.metadata import UNITS, Trigger


class UnknownDemandError(Exception):
    """The message says why for a person."""


def is_active(trigger: Trigger, reading: Reading) -> bool:
    """KEDA's IsActive. UnknownDemandError if that cannot be told."""
    if trigger.is_forced or is_above(trigger, reading):
        return True
    if not reading.is_known:
        raise _unknown(trigger, reading)
    return False


def is_above(trigger: Trigger, reading: Reading) -> bool:
    """Whether demand is above activation for certain."""
    return reading.demand is not None and reading.demand.total > trigger.activation


def needs_waking(trigger: Trigger, reading: Reading) -> bool:
    """Demand that waits for a replica: what KEDA is told again and again until one answers. A replica that sleeps is none."""
    demand = reading.demand
    return demand is not None and is_above(trigger, reading) and (demand.held > 0 or not demand.workers)


def values_of(trigger: Trigger, reading: Reading, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Each metric's value. Where there was nothing to measure (a latency without requests) it is 0. UnknownDemandError otherwise."""
    demand = reading.demand
    if demand is None or not reading.is_known:
        raise _unknown(trigger, reading)
    found = {}
    for name, metric in metrics.items():
        value = demand.readings.get(metric)
        if value is None and metric not in demand.idle:
            raise UnknownDemandError(f"no worker of {trigger.service} has reported {name} yet")
        found[name] = (value or 0.0) * UNITS[metric]
    return found


def _unknown(trigger: Trigger, reading: Reading) -> UnknownDemandError:
    return UnknownDemandError(
        f"the demand of {trigger.service} is not known: {reading.trouble or 'no router has told'}"
    )
