"""The layers of a router in their order. Called by `__main__` only; a part of its graph that has a page of its own. A call passes those
that have something to do with its kind: one without a tenant, for a model's own name, where nothing is filtered or kept, only has its
prompt read and is admitted.

client -> tenant's requests -> filters -> prompt is read -> tenant's tokens -> saving -> routes' fallbacks -> admission -> key again
-> proxy -> worker
"""

import time
from collections.abc import Awaitable
from dataclasses import dataclass

from quire_router.access import AccessLayer
from quire_router.admission import AdmissionLayer
from quire_router.admission_metrics import AdmissionMetrics
from quire_router.answer import Answer, Layer, Source, layered
from quire_router.call import Call, Outcome
from quire_router.endpoint_pool import EndpointPool
from quire_router.filtering.layer import FilterLayer
from quire_router.line import LIGHT_PATHS
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics
from quire_router.native.library import native
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
    filters: FilterLayer


class Chains:
    """What calls pass on their way to `source`, made once for each kind of call and each configuration."""

    def __init__(self, parts: LayerParts, source: Source, live: LiveConfig) -> None:
        self._parts = parts
        self._source = source
        self._of_kind: dict[int, Source] = {}
        live.follow(lambda _: self._of_kind.clear())

    def answer(self, call: Call, outcome: Outcome) -> Awaitable[Answer]:
        """The answer to a call. ApiError if there is none."""
        kind = (call.tenant is not None) + 2 * (call.route is not None)
        chain = self._of_kind.get(kind)
        if chain is None:
            layers = layers_for(self._parts, has_tenant=call.tenant is not None, has_route=call.route is not None)
            chain = self._of_kind[kind] = layered(layers, self._source)
        return chain(call, outcome)


def layers_for(parts: LayerParts, *, has_tenant: bool, has_route: bool) -> list[Layer]:
    """What calls of a kind pass while the configuration is as it is, outermost first."""
    layers: list[tuple[bool, Layer]] = [
        (has_tenant, parts.tenancy.request_limits),
        (parts.filters.is_on, parts.filters),
        (True, PromptLayer(parts.picker)),
        (has_tenant, parts.tenancy.token_limits),
        (has_route, parts.saving.notes),
        (parts.saving.saving.is_on, parts.saving.saving),
        (has_route, parts.saving.routes),
        (True, AdmissionLayer(parts.room, time.monotonic)),
        (has_tenant, AccessLayer(parts.tenancy.tenants, time.time)),
    ]
    return [layer for is_for, layer in layers if is_for]


def build_waiting_room(*, live: LiveConfig, pool: EndpointPool, picker: Picker, metrics: RouterMetrics) -> WaitingRoom:
    """Where calls wait for room at the workers; it hears of every change at them."""

    def uncached(call: Call) -> int:
        if call.prompt is not None:
            return picker.least_uncached(call.targets[0], call.prompt)
        return 1 if call.path in LIGHT_PATHS else 1 + len(call.body) // BYTES_PER_TOKEN

    room = WaitingRoom(
        pool=pool,
        metrics=AdmissionMetrics(metrics.registry),
        uncached=uncached,
        clock=time.monotonic,
        parts=native(),
    )
    pool.on_change = room.changed
    live.follow(room.apply)
    return room
