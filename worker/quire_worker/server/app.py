"""The routes, as an aiohttp application."""

from collections.abc import Mapping

from aiohttp import web

from quire_worker.server.embeddings import Embeddings
from quire_worker.server.generate import Generate
from quire_worker.server.internal_routes import InternalRoutes
from quire_worker.server.middleware import Edge, Handler
from quire_worker.server.model_routes import ModelRoutes
from quire_worker.server.openapi import OpenApi
from quire_worker.server.probes import Probes
from quire_worker.server.routes import ROUTES


def make_app(
    *,
    edge: Edge,
    generate: Generate,
    model_routes: ModelRoutes,
    probes: Probes,
    internal: InternalRoutes,
    embeddings: Embeddings,
    openapi: OpenApi,
    max_body_bytes: int,
) -> web.Application:
    """The application; it owns nothing and starts nothing."""
    handlers: Mapping[str, Handler] = {
        "chat": generate.chat,
        "completion": generate.completion,
        "resume": generate.resume,
        "embeddings": embeddings.embeddings,
        "rerank": embeddings.rerank,
        "rerank_plain": embeddings.rerank,
        "rerank_cohere": embeddings.rerank,
        "score": embeddings.score,
        "score_plain": embeddings.score,
        "response": generate.response,
        "message": generate.message,
        "count_tokens": model_routes.count_tokens,
        "models": model_routes.models,
        "model": model_routes.model,
        "tokenize": model_routes.tokenize,
        "detokenize": model_routes.detokenize,
        "health": probes.health,
        "ready": probes.ready,
        "metrics": probes.metrics,
        "version": probes.version,
        "load": probes.load,
        "openapi": openapi.show,
        "kv_event_sources": internal.kv_event_sources,
        "bundle": internal.bundle,
        "bundle_bytes": internal.bundle_bytes,
        "drain": internal.drain,
        "undrain": internal.undrain,
        "startup": probes.startup,
        "sleep": internal.sleep.sleep,
        "wake": internal.sleep.wake,
    }
    assert handlers.keys() == {route.name for route in ROUTES}, "every route has a handler, and every handler a route"
    app = web.Application(client_max_size=max_body_bytes)
    edge.install(app)
    for route in ROUTES:
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            app.router.add_route(method, route.path, handlers[route.name])
    return app
