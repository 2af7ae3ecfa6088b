"""The layers of a router in their order. Called by `__main__` only; a part of its graph that has a page of its own.

client -> tenant's requests -> filters -> prompt is read -> tenant's tokens -> saving -> routes' fallbacks -> admission -> proxy -> worker
"""

from quire_router.answer import Layer
from quire_router.background import Background
from quire_router.endpoints import EndpointPool
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics
from quire_router.model_versions import ModelVersions
from quire_router.picker import Picker
from quire_router.reading import PromptLayer
from quire_router.redis_answers import RedisAnswers
from quire_router.route_layers import route_layers
from quire_router.route_metrics import RouteMetrics
from quire_router.saving import Clocks, SavingLayer
from quire_router.saving_metrics import SavingMetrics
from quire_router.tenancy import Tenancy


def build_layers(
    *,
    live: LiveConfig,
    picker: Picker,
    pool: EndpointPool,
    metrics: RouterMetrics,
    redis_answers: RedisAnswers | None,
    background: Background,
    tenancy: Tenancy,
) -> list[Layer]:
    """What each call passes, outermost first."""
    route_notes, routes = route_layers(
        live=live, pool=pool, background=background, metrics=RouteMetrics(metrics.registry)
    )
    layers: list[Layer] = []
    layers.append(tenancy.request_limits)
    # Filters: prompts before anybody reads them, and what is sent to the client.
    layers.append(PromptLayer(picker))
    layers.append(tenancy.token_limits)
    layers.append(route_notes)
    layers.append(
        SavingLayer(
            live=live,
            versions=ModelVersions(pool),
            redis=redis_answers,
            metrics=SavingMetrics(metrics.registry),
            clocks=Clocks(),
        )
    )
    layers.append(routes)
    # Admission: waits for room at the workers.
    return layers
