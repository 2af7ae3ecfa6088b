"""The layers of a router in their order. Called by `__main__` only; a part of its graph that has a page of its own.

client -> tenant's requests -> filters -> prompt is read -> tenant's tokens -> saving -> routes' fallbacks -> admission -> key again
-> proxy -> worker
"""

import time
from dataclasses import dataclass

from quire_router.access import AccessLayer
from quire_router.admission import AdmissionLayer
from quire_router.admission_metrics import AdmissionMetrics
from quire_router.answer import Layer
from quire_router.call import Call
from quire_router.endpoint_pool import EndpointPool
from quire_router.line import LIGHT_PATHS
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics
from quire_router.picker import Picker
from quire_router.reading import PromptLayer
from quire_router.saving_parts import SavingParts
from quire_router.tenancy import Tenancy
from quire_router.waiting_room import WaitingRoom

BYTES_PER_TOKEN = 4
"""Of a body whose prompt nobody has read."""


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """What layers are made of."""

    picker: Picker
    saving: SavingParts
    tenancy: Tenancy
    room: WaitingRoom
    filters: Layer


def build_layers(parts: LayerParts) -> list[Layer]:
    """What each call passes, outermost first."""
    return [
        parts.tenancy.request_limits,
        parts.filters,
        PromptLayer(parts.picker),
        parts.tenancy.token_limits,
        parts.saving.notes,
        parts.saving.saving,
        parts.saving.routes,
        AdmissionLayer(parts.room, time.monotonic),
        AccessLayer(parts.tenancy.tenants, time.time),
    ]


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
