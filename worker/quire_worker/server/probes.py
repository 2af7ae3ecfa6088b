"""What machines ask about this process: /health, /ready, /metrics, /version, /load. Never waits for the engine."""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from quire_worker.server import errors
from quire_worker.server.load_watch import LoadWatch
from quire_worker.server.model_routes import json_response
from quire_worker.server.serving import Serving


class Probes:
    """Handlers open to everybody, but /version and /load."""

    def __init__(self, serving: Serving, version: str, health_timeout_s: float, load_watch: LoadWatch) -> None:
        self._serving = serving
        self._version = version
        self._health_timeout_s = health_timeout_s
        self._load_watch = load_watch

    async def health(self, request: web.Request) -> web.Response:
        """Alive: 200 also while loading and draining. 503 when only a restart helps: engine or load are dead or stuck."""
        del request
        lifecycle = self._serving.lifecycle
        heartbeat = self._serving.engine.heartbeat
        problem = lifecycle.failure
        if problem is None and heartbeat is not None:
            problem = heartbeat.problem(self._health_timeout_s)
        if problem is None and lifecycle.phase == "loading":
            problem = self._load_watch.problem()
        if problem is not None:
            raise errors.engine_dead(problem)
        return json_response({"status": "ok", "phase": lifecycle.phase})

    async def ready(self, request: web.Request) -> web.Response:
        """Requests are taken: 200. 503 with the phase while loading, draining or failed."""
        del request
        lifecycle = self._serving.lifecycle
        match lifecycle.phase:
            case "loading":
                raise errors.not_ready(f"loading ({lifecycle.detail})")
            case "draining":
                raise errors.draining()
            case "failed":
                raise errors.engine_dead(lifecycle.failure or "unknown")
            case "ready":
                return json_response({"status": "ready"})

    async def metrics(self, request: web.Request) -> web.Response:
        del request
        return web.Response(body=self._serving.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def version(self, request: web.Request) -> web.Response:
        del request
        return json_response({"version": self._version})

    async def load(self, request: web.Request) -> web.Response:
        """Requests inside this process."""
        del request
        return json_response({"server_load": self._serving.num_inside})
