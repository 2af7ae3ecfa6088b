"""What machines ask about this process: /health, /ready, /metrics, /internal/startup, /version, /load. Never waits for the engine.

The first four are asked on the health port too, by its own thread: they use nothing that belongs to an event loop.
"""

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from quire_worker.server import errors
from quire_worker.server.model_routes import json_response
from quire_worker.server.serving import Serving
from quire_worker.server.startup import Startup
from quire_worker.server.vitals import Vitals


class Probes:
    """Handlers open to everybody, but /internal/startup, /version and /load."""

    def __init__(self, serving: Serving, version: str, vitals: Vitals, startup: Startup) -> None:
        self._serving = serving
        self._version = version
        self._vitals = vitals
        self._startup = startup

    async def health(self, request: web.Request) -> web.Response:
        """Alive: 200 also while loading and draining. 503 when only a restart helps: engine, load or event loop are dead or stuck."""
        del request
        problem = self._vitals.problem()
        if problem is not None:
            raise errors.unhealthy(problem)
        return json_response({"status": "ok", "phase": self._vitals.phase})

    async def ready(self, request: web.Request) -> web.Response:
        """Requests are taken: 200. 503 with the phase while loading, asleep, draining or failed."""
        del request
        refusal = self._vitals.refusal()
        if refusal is not None:
            raise refusal
        return json_response({"status": "ready"})

    async def metrics(self, request: web.Request) -> web.Response:
        del request
        return web.Response(body=self._serving.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def startup(self, request: web.Request) -> web.Response:
        """How long each part of the start took, as far as known."""
        del request
        return web.Response(
            body=msgspec.json.encode(self._startup.report(self._vitals.phase)), content_type="application/json"
        )

    async def version(self, request: web.Request) -> web.Response:
        del request
        return json_response({"version": self._version})

    async def load(self, request: web.Request) -> web.Response:
        """Requests inside this process."""
        del request
        return json_response({"server_load": self._serving.num_inside})
