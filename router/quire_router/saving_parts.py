"""The layers that save work and that choose between a route's models, with all that they need. Opened by `__main__` only."""

import contextlib
import random
import time
from collections.abc import AsyncIterator

import msgspec

from quire_router.answer import Layer
from quire_router.background import Background
from quire_router.clocks import Clocks
from quire_router.endpoint_pool import EndpointPool
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics
from quire_router.model_versions import ModelVersions
from quire_router.redis_answers import answers_in_redis
from quire_router.route_layers import RouteLayer, RouteNotes
from quire_router.route_metrics import RouteMetrics
from quire_router.saving import SavingLayer
from quire_router.saving_metrics import SavingMetrics
from quire_router.shadow import ShadowTraffic
from quire_router.shared_store import SharedStore


class SavingParts(msgspec.Struct, frozen=True, kw_only=True):
    """Three layers, in their order."""

    notes: Layer
    """What an answer tells of its route."""
    saving: SavingLayer
    routes: Layer
    """Fallbacks and shadow traffic."""


@contextlib.asynccontextmanager
async def saving_parts(
    *, live: LiveConfig, pool: EndpointPool, metrics: RouterMetrics, shared: SharedStore | None
) -> AsyncIterator[SavingParts]:
    """Open while entered; what runs in the background ends with it."""
    background = Background()
    async with contextlib.AsyncExitStack() as stack:
        answers = await stack.enter_async_context(answers_in_redis(shared, background))
        stack.push_async_callback(background.close)
        route_metrics = RouteMetrics(metrics.registry)
        live.follow(route_metrics.follow)
        shadow = ShadowTraffic(
            pool=pool,
            background=background,
            metrics=route_metrics,
            rng=random.Random(),  # noqa: S311 - samples traffic, guards nothing
            clock=time.monotonic,
        )
        yield SavingParts(
            notes=RouteNotes(route_metrics),
            saving=SavingLayer(
                live=live,
                versions=ModelVersions(pool),
                redis=answers,
                metrics=SavingMetrics(metrics.registry),
                clocks=Clocks(),
            ),
            routes=RouteLayer(pool=pool, shadow=shadow, metrics=route_metrics),
        )
