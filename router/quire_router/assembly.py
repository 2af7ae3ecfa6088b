"""The layers of a router in their order. Called by `__main__` only; a part of its graph that has a page of its own.

client -> tenant's requests -> filters -> prompt is read -> tenant's tokens -> saving -> routes' fallbacks -> admission -> proxy -> worker
"""

from quire_router.answer import Layer
from quire_router.live_config import LiveConfig
from quire_router.picker import Picker
from quire_router.reading import PromptLayer
from quire_router.tenancy import Tenancy


def build_layers(*, live: LiveConfig, picker: Picker, tenancy: Tenancy) -> list[Layer]:
    """What each call passes, outermost first."""
    layers: list[Layer] = []
    layers.append(tenancy.request_limits)
    # Filters: prompts before anybody reads them, and what is sent to the client.
    layers.append(PromptLayer(picker))
    layers.append(tenancy.token_limits)
    # Saving: answers that are known, generations that are shared.
    # Routes: fallbacks after errors, shadow traffic.
    # Admission: waits for room at the workers.
    return layers
