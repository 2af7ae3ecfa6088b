"""The routes, as an aiohttp application."""

from aiohttp import web

from quire_contract import names
from quire_worker.server.generate import Generate
from quire_worker.server.internal_routes import InternalRoutes
from quire_worker.server.middleware import Edge
from quire_worker.server.model_routes import ModelRoutes
from quire_worker.server.probes import Probes


def make_app(
    *,
    edge: Edge,
    generate: Generate,
    model_routes: ModelRoutes,
    probes: Probes,
    internal: InternalRoutes,
    max_body_bytes: int,
) -> web.Application:
    """The application; it owns nothing and starts nothing."""
    app = web.Application(client_max_size=max_body_bytes)
    edge.install(app)
    app.add_routes(
        [
            web.post(names.PATH_CHAT, generate.chat),
            web.post(names.PATH_COMPLETIONS, generate.completion),
            web.post(names.PATH_RESPONSES, generate.response),
            web.post(names.PATH_MESSAGES, generate.message),
            web.post(names.PATH_COUNT_TOKENS, model_routes.count_tokens),
            web.get(names.PATH_MODELS, model_routes.models),
            web.get(names.PATH_MODELS + "/{name:.+}", model_routes.model),
            web.post(names.PATH_TOKENIZE, model_routes.tokenize),
            web.post(names.PATH_DETOKENIZE, model_routes.detokenize),
            web.get(names.PATH_HEALTH, probes.health),
            web.get(names.PATH_READY, probes.ready),
            web.get(names.PATH_METRICS, probes.metrics),
            web.get("/version", probes.version),
            web.get("/load", probes.load),
            web.get(names.PATH_KV_EVENT_SOURCES, internal.kv_event_sources),
            web.get(names.PATH_PROMPT_BUNDLE, internal.bundle),
            web.get(names.PATH_PROMPT_BUNDLE + "/{digest}", internal.bundle_bytes),
            web.post(names.PATH_DRAIN, internal.drain),
            web.delete(names.PATH_DRAIN, internal.undrain),
        ]
    )
    return app
