"""The layers of a router in their order. Called by `__main__` only; a part of its graph that has a page of its own.

client -> tenant's requests -> filters -> prompt is read -> tenant's tokens -> saving -> routes' fallbacks -> admission -> proxy -> worker
"""

import time

from quire_router.admission import AdmissionLayer
from quire_router.admission_metrics import AdmissionMetrics
from quire_router.answer import Layer
from quire_router.call import Call
from quire_router.endpoints import EndpointPool
from quire_router.line import LIGHT_PATHS
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics
from quire_router.picker import Picker
from quire_router.reading import PromptLayer
from quire_router.waiting_room import WaitingRoom

BYTES_PER_TOKEN = 4
"""Of a body whose prompt nobody has read."""


def build_layers(*, live: LiveConfig, picker: Picker, room: WaitingRoom) -> list[Layer]:
    """What each call passes, outermost first."""
    layers: list[Layer] = []
    # Tenant's requests: a minute's, and those in flight.
    # Filters: prompts before anybody reads them, and what is sent to the client.
    layers.append(PromptLayer(picker))
    # Tenant's tokens: reserved here, settled when the answer is closed; usage is written down.
    # Saving: answers that are known, generations that are shared.
    # Routes: fallbacks after errors, shadow traffic.
    layers.append(AdmissionLayer(room, time.monotonic))
    return layers


def build_waiting_room(*, live: LiveConfig, pool: EndpointPool, picker: Picker, metrics: RouterMetrics) -> WaitingRoom:
    """Where calls wait for room at the workers; it hears of every change at them."""

    def uncached(call: Call) -> int:
        if call.prompt is not None:
            return picker.least_uncached(call.targets[0], call.prompt)
        return 1 if call.path in LIGHT_PATHS else 1 + len(call.body) // BYTES_PER_TOKEN

    room = WaitingRoom(pool=pool, metrics=AdmissionMetrics(metrics.registry), uncached=uncached, clock=time.monotonic)
    pool.on_change = room.changed
    live.follow(room.apply)
    return room
