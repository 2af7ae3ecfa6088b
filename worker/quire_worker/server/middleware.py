"""What happens around every handler: request id, access, errors as JSON, counting.

Must not know what any route does.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from quire_contract import names
from quire_contract.error_form import error_body, request_id_headers
from quire_contract.openai.errors import (
    CODE_METHOD_NOT_ALLOWED,
    ApiError,
    body_too_large,
    internal,
    path_not_found,
    unauthorized,
)
from quire_contract.request_id import request_id_from
from quire_worker.engine.messages import Stats
from quire_worker.server import errors
from quire_worker.server.access import Access
from quire_worker.server.engine_client import EngineDeadError
from quire_worker.server.lifecycle import Lifecycle
from quire_worker.server.metrics import Metrics
from quire_worker.server.orca import REQUEST_HEADER, RESPONSE_HEADER, load_header
from quire_worker.server.tracing import NO_SPAN, NoTracing, Span, Tracing

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)
_CLIENT_WENT_AWAY = 499
SERVER_NAME = "quire"
"""Instead of aiohttp's own, which tells versions."""


@dataclasses.dataclass(frozen=True)
class Caller:
    """Who asks."""

    request_id: str
    """The client's X-Request-Id if it was fit for logs, else made here. Not unique: clients repeat theirs."""
    trusted: bool
    """May use x-quire-* headers."""
    cache_scope: bytes | None = dataclasses.field(default=None, repr=False)
    """See access.scoped_salt."""


CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
SPAN: web.RequestKey[Span] = web.RequestKey("span", Span)
"""Of every POST but internal ones; it says nothing where nobody collects spans."""
_STARTED: web.RequestKey[bool] = web.RequestKey("started", bool)
"""There once an answer's head goes out."""


class Edge:
    """Stands between aiohttp and the handlers."""

    def __init__(
        self,
        access: Access,
        metrics: Metrics,
        lifecycle: Lifecycle,
        tracing: Tracing | None = None,
        stats: Callable[[], Stats | None] = lambda: None,
    ) -> None:
        """`stats` are the engine's latest."""
        self._tracing = tracing or NoTracing()
        self._stats = stats
        self._access = access
        self._metrics = metrics
        self._lifecycle = lifecycle

    def install(self, app: web.Application) -> None:
        app.middlewares.append(self.around)
        app.on_response_prepare.append(self._stamp)

    @web.middleware
    async def around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The middleware."""
        request[CALLER] = Caller(
            request_id_from(request.headers.get(names.HEADER_REQUEST_ID)),
            self._access.is_trusted(request.headers),
            self._access.cache_scope(request.headers),
        )
        request[SPAN] = span = self._span(request)
        code = _CLIENT_WENT_AWAY
        try:
            response = await self._answer(request, handler)
            code = response.status
            return response
        finally:
            self._metrics.on_response(_route(request), code)
            span.end(code)

    def _span(self, request: web.Request) -> Span:
        if request.method != "POST" or request.path.startswith("/internal/"):
            return NO_SPAN
        return self._tracing.begin(request.method, _route(request), request.headers)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not self._access.may_call(request.path, request.headers):
                raise unauthorized()
            return await handler(request)
        except ApiError as error:
            return _refusal(error, request)
        except EngineDeadError as error:
            return _refusal(errors.engine_dead(str(error)), request)
        except web.HTTPException as error:
            return _refusal(_of_http(error, request), request)
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception:  # one broken request must not show its insides, nor end the server
            _log.exception("request failed request_id=%s", request[CALLER].request_id)
            if _STARTED in request:
                raise  # part of an answer is out: a second one would end up inside it, only a cut connection is understood
            return _refusal(internal(), request)

    async def _stamp(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = SERVER_NAME
        if self._lifecycle.phase in ("draining", "failed"):
            response.headers["Connection"] = "close"  # the client's next request opens a connection, to somebody else
            response.force_close()
        request[_STARTED] = True
        form = request.headers.get(REQUEST_HEADER)
        load = None if form is None else load_header(form, self._stats())
        if load is not None:
            response.headers[RESPONSE_HEADER] = load
        if CALLER in request:
            response.headers.update(request_id_headers(request.path, request[CALLER].request_id))


def error_response(error: ApiError) -> web.Response:
    """The error as an HTTP response in OpenAI's form."""
    return _response(error, error.body())


def _refusal(error: ApiError, request: web.Request) -> web.Response:
    """The error in the form of the API that was called."""
    return _response(error, error_body(error, request.path, request[CALLER].request_id))


def _response(error: ApiError, body: bytes) -> web.Response:
    return web.Response(body=body, status=error.status, headers=error.headers, content_type="application/json")


def _of_http(error: web.HTTPException, request: web.Request) -> ApiError:
    """What aiohttp raises on its own: unknown path, wrong method, large body."""
    if error.status == web.HTTPNotFound.status_code:
        return path_not_found(request.path)
    if isinstance(error, web.HTTPMethodNotAllowed):
        headers = {"Allow": ", ".join(sorted(error.allowed_methods))}
        message = f"{request.path} does not take {request.method}."
        return ApiError(405, message, code=CODE_METHOD_NOT_ALLOWED, headers=headers)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return body_too_large(request.client_max_size)
    return ApiError(error.status, error.reason)


def _route(request: web.Request) -> str:
    """The route's pattern; raw paths would make a metric for every typo."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"
