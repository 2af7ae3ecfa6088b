"""The layers of a router in their order. Called by `__main__` only; a part of its graph that has a page of its own.

client -> tenant's requests -> filters -> prompt is read -> tenant's tokens -> saving -> routes' fallbacks -> admission -> proxy -> worker
"""

from quire_router.answer import Layer
from quire_router.live_config import LiveConfig
from quire_router.picker import Picker
from quire_router.reading import PromptLayer
from quire_router.saving_parts import SavingParts


def build_layers(*, live: LiveConfig, picker: Picker, saving: SavingParts) -> list[Layer]:
    """What each call passes, outermost first."""
    layers: list[Layer] = []
    # Tenant's requests: a minute's, and those in flight.
    # Filters: prompts before anybody reads them, and what is sent to the client.
    layers.append(PromptLayer(picker))
    # Tenant's tokens: reserved here, settled when the answer is closed; usage is written down.
    layers.append(saving.notes)
    layers.append(saving.saving)
    layers.append(saving.routes)
    # Admission: waits for room at the workers.
    return layers
