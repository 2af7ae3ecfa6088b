"""Demand as a test wants it, and a scaler that tells KEDA of it."""

import asyncio
from collections.abc import Callable

from quire_operator.autoscale.aggregate import Reading
from quire_operator.autoscale.signal import Demand, WorkerLoad

SERVICE = "models/chat"


def demand(held: int = 0, queued: int = 0, running: int = 0, *, workers: int = 0, idle=(), **readings: float) -> Demand:
    """Of a service with so many workers."""
    told = {"Demand": float(held + queued + running), "QueueLength": float(held + queued), **readings}
    return Demand(
        held=held,
        queued=queued,
        running=running,
        readings=told,
        idle=frozenset(idle),
        workers={f"pod-{number}": WorkerLoad(in_flight=0) for number in range(workers)},
    )


def known(found: Demand) -> Reading:
    return Reading(demand=found, is_known=True, age_s=0.1)


UNKNOWN = Reading(demand=None, is_known=False, trouble="no answer from router-0: status 503")


def ref(*, name: str = "chat", namespace: str = "models", **metadata: str) -> dict:
    """A ScaledObjectRef with KEDA's own keys among the metadata."""
    told = {"scalerAddress": "quire-scaler.llm.svc:9090", "service": "chat", "target": "8", **metadata}
    return {"name": name, "namespace": namespace, "scalerMetadata": {key: text for key, text in told.items() if text}}


class Source:
    """A DemandSource that is told what to say."""

    def __init__(self) -> None:
        self.readings: dict[str, Reading] = {}
        self.subscribers: dict[str, list[Callable[[], None]]] = {}
        self.subscribed = asyncio.Event()
        self.unsubscribed = asyncio.Event()

    def say(self, reading: Reading, service: str = SERVICE, *, edge: bool = False) -> None:
        self.readings[service] = reading
        if edge:
            for told in self.subscribers.get(service, ()):
                told()

    def reading(self, service: str) -> Reading:
        return self.readings.get(service, UNKNOWN)

    def subscribe(self, service: str, on_edge: Callable[[], None]) -> Callable[[], None]:
        self.subscribers.setdefault(service, []).append(on_edge)
        self.subscribed.set()

        def end() -> None:
            self.subscribers[service].remove(on_edge)
            self.unsubscribed.set()

        return end
