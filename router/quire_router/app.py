"""The router's HTTP face: dispatch by path, and the answers that need no worker.

aiohttp's low-level server with a table of paths: no application and no middlewares, since each request pays for every microsecond here.
"""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from quire_contract import names
from quire_contract.openai.errors import CODE_METHOD_NOT_ALLOWED, ApiError, model_not_found, path_not_found, unavailable
from quire_contract.openai.responses import ModelCard, ModelList
from quire_contract.request_id import request_id_from, request_ids
from quire_router.access import Access
from quire_router.call import Tenant
from quire_router.debug_route import describe_endpoints, explain_decisions
from quire_router.endpoint_pool import EndpointPool
from quire_router.kv_index import KvIndex
from quire_router.metrics import RouterMetrics
from quire_router.picker import Picker
from quire_router.responses import error_response, json_response

Handler = Callable[[web.BaseRequest, str, Tenant | None], Awaitable[web.StreamResponse]]


class RouterApp:
    """Answers every request. `handle` is the server's handler."""

    def __init__(
        self,
        *,
        pool: EndpointPool,
        index: KvIndex,
        picker: Picker,
        others: Mapping[str, tuple[str, Handler]],
        access: Access,
        metrics: RouterMetrics,
        clock: Callable[[], float],
        started_ts: int,
    ) -> None:
        """`others`: path -> method and handler of what is answered elsewhere, workers' calls above all."""
        self._pool = pool
        self._index = index
        self._picker = picker
        self._access = access
        self._metrics = metrics
        self._clock = clock
        self._started_ts = started_ts
        self._new_id = request_ids()
        self.admin_url = ""
        """Where the admin API listens; empty: nowhere."""
        self.draining = False
        """Whether readiness is off because the process is about to end."""
        self._routes: Mapping[str, tuple[str, Handler]] = {
            **others,
            names.PATH_MODELS: ("GET", self._models),
            names.PATH_HEALTH: ("GET", self._health),
            names.PATH_READY: ("GET", self._ready),
            names.PATH_METRICS: ("GET", self._show_metrics),
            names.PATH_DEBUG_ROUTE: ("GET", self.debug_route),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to any request."""
        path, headers = request.path, request.headers
        theirs = headers.get(names.HEADER_REQUEST_ID)
        request_id = self._new_id() if theirs is None else request_id_from(theirs, self._new_id)
        try:
            route = self._routes.get(path)
            handler = route[1] if route is not None and route[0] == request.method else self._find(path, request.method)
            tenant = self._access.check(path, headers)
            response = await handler(request, request_id, tenant)
        except ApiError as error:
            response = error_response(error, request_id, path)
        if self.draining:
            response.force_close()  # so that clients open their next connection elsewhere
        return response

    def _find(self, path: str, method: str) -> Handler:
        route = self._routes.get(path)
        if route is None and path.startswith(names.PATH_MODELS + "/"):
            route = ("GET", self._model)
        if route is None:
            raise path_not_found(path)
        wanted, handler = route
        if method != wanted and not (wanted == "GET" and method == "HEAD"):
            raise ApiError(405, f"Use {wanted} for {path}.", code=CODE_METHOD_NOT_ALLOWED, headers={"Allow": wanted})
        return handler

    async def _models(self, request: web.BaseRequest, request_id: str, tenant: Tenant | None) -> web.StreamResponse:
        """All declared names that the caller may use, whether a worker is ready or not: a model at zero replicas exists."""
        self._need_configuration()
        usable = self._access.tenants.visible(tenant, self._pool.models)
        return json_response(ModelList(data=[self._card(name) for name in usable]), request_id)

    async def _model(self, request: web.BaseRequest, request_id: str, tenant: Tenant | None) -> web.StreamResponse:
        """One name, which may contain slashes."""
        self._need_configuration()
        name = request.path.removeprefix(names.PATH_MODELS + "/")
        usable = self._access.tenants.visible(tenant, self._pool.models)
        if name not in usable:
            raise model_not_found(name, sorted(usable))
        return json_response(self._card(name), request_id)

    def _card(self, name: str) -> ModelCard:
        return ModelCard(id=name, created=self._started_ts, max_model_len=self._max_model_len(name))

    def _max_model_len(self, model: str) -> int | None:
        """The least over the workers that told: any of them may get the request."""
        return min((e.max_model_len for e in self._pool.answering(model) if e.max_model_len is not None), default=None)

    def _need_configuration(self) -> None:
        if not self._pool.is_configured:
            raise unavailable("The router has not got its configuration yet.")

    async def _health(self, request: web.BaseRequest, request_id: str, tenant: Tenant | None) -> web.StreamResponse:
        """The event loop runs."""
        return json_response({"status": "ok"}, request_id)

    async def _ready(self, request: web.BaseRequest, request_id: str, tenant: Tenant | None) -> web.StreamResponse:
        """Ready as soon as the configuration is loaded once: not only with a ready worker, or requests that should wait for a model to
        wake could never arrive."""
        if self.draining:
            raise unavailable("The router is shutting down.", code=names.REASON_DRAINING)
        self._need_configuration()
        ready = sum(endpoint.ready for endpoint in self._pool)
        return json_response({"status": "ready", "endpoints": len(self._pool), "ready_endpoints": ready}, request_id)

    async def _show_metrics(
        self, request: web.BaseRequest, request_id: str, tenant: Tenant | None
    ) -> web.StreamResponse:
        self._metrics.show_state(self._pool, self._index)
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def debug_route(self, request: web.BaseRequest, request_id: str, tenant: Tenant | None) -> web.StreamResponse:
        """The last choices and the endpoints, of all tenants."""
        shown = {
            "decisions": explain_decisions(self._picker.decisions, request.query, self._picker.planner.plans),
            "endpoints": describe_endpoints(self._pool, self._index, self._clock()),
        }
        return json_response(shown, request_id)
