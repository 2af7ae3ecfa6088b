"""The layers of a router in their order. Called by `__main__` only; a part of its graph that has a page of its own.

client -> tenant's requests -> filters -> prompt is read -> tenant's tokens -> saving -> routes' fallbacks -> admission -> proxy -> worker
"""

from quire_router.answer import Layer
from quire_router.live_config import LiveConfig
from quire_router.picker import Picker
from quire_router.reading import PromptLayer


def build_layers(*, live: LiveConfig, picker: Picker, filters: Layer) -> list[Layer]:
    """What each call passes, outermost first."""
    layers: list[Layer] = []
    # Tenant's requests: a minute's, and those in flight.
    layers.append(filters)
    layers.append(PromptLayer(picker))
    # Tenant's tokens: reserved here, settled when the answer is closed; usage is written down.
    # Saving: answers that are known, generations that are shared.
    # Routes: fallbacks after errors, shadow traffic.
    # Admission: waits for room at the workers.
    return layers
