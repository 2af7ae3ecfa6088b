"""Takes one call that goes to a worker: reads its body, finds its model, has it answered, and accounts for it.

Only what the router must know is checked here; the rest of the body is the worker's to judge.
"""

import asyncio
import logging
from collections.abc import Callable

import msgspec
from aiohttp import hdrs, web

from quire_contract.openai.errors import (
    ApiError,
    body_too_large,
    invalid,
    model_not_found,
    unavailable,
)
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import RoutingFields
from quire_contract.routing import PATHS_BY_MODEL, PATHS_WITH_PROMPT
from quire_contract.telemetry import EventLine
from quire_router.answer import Source
from quire_router.arrived import take_arrived
from quire_router.bodies import BodyReader, Read
from quire_router.call import STATUS_CLIENT_GONE, Call, Outcome, Tenant
from quire_router.content_encoding import decoded
from quire_router.delivery import deliver, whole
from quire_router.endpoint_pool import EndpointPool
from quire_router.metrics import UNKNOWN_MODEL, RouterMetrics
from quire_router.native.library import native
from quire_router.picker import Picker
from quire_router.plain_request import PlainRequest
from quire_router.responses import error_response
from quire_router.route_plan import Asker, RoutePlan
from quire_router.tenants import TenantBook

log = logging.getLogger("quire_router.request")

CALLED_PATHS = PATHS_WITH_PROMPT | PATHS_BY_MODEL
"""Whose POSTs are calls."""
BODY_TIMEOUT_S = 60.0
"""For a client to send its body."""
LARGE_BODY_BYTES = 256 * 1024
"""Parsing more than this takes milliseconds, in which no stream would go on."""
LINE_FIELDS = (
    "request_id",
    "path",
    "model",
    "target",
    "status",
    "attempts",
    "resumes",
    "waited_ms",
    "first_byte_ms",
    "total_ms",
    "endpoint",
    "ladder_level",
    "cached_tokens",
    "prompt_tokens",
    "why",
    "problem",
)
"""Of the line that every request leaves."""


class CallSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for every call."""

    limits: Limits
    keep_key: bool
    """Whether the client's key is for the worker."""
    log_requests: bool
    idle_timeout_s: float
    """For a client to take what was sent."""


class CallHandler:
    """One for the process. Every call ends in one log line and one count, however it ends."""

    def __init__(
        self,
        *,
        pool: EndpointPool,
        picker: Picker,
        source: Source,
        metrics: RouterMetrics,
        tenants: TenantBook,
        settings: CallSettings,
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._picker = picker
        self._source = source
        self._metrics = metrics
        self._tenants = tenants
        self._settings = settings
        self._clock = clock
        module = native()
        self._bodies = BodyReader(settings.limits, module)
        self._line = EventLine(
            log, logging.INFO, "request", LINE_FIELDS, _later, None if module is None else module.LineWriter
        )
        self._large = asyncio.Semaphore(1)
        """Large bodies are parsed in a thread, one after the other: several at once would keep the interpreter from all other requests."""

    async def handle(
        self, request: web.BaseRequest, request_id: str, tenant: Tenant | None = None
    ) -> web.StreamResponse:
        """The answer: a worker's, or an error of our own."""
        started_s = self._clock()
        outcome = Outcome()
        try:
            max_bytes = self._settings.limits.max_body_bytes
            body = _body_at_hand(request, max_bytes)
            if body is None:
                body = await _read_body(request, max_bytes)
            if len(body) <= LARGE_BODY_BYTES:
                fields, named = self._bodies.read(request.path, body)
            else:
                fields, named = await self._read_large(request.path, body)
            outcome.model = model = self._known(named, tenant)
            call = self._call(request, request_id, body, fields, model, started_s, tenant)
            answer = await self._source(call, outcome)
            response = whole(answer, outcome)
            if response is not None:
                return response
            return await deliver(request, call, answer, outcome, idle_s=self._settings.idle_timeout_s)
        except ApiError as error:
            outcome.status = error.status
            outcome.problem = outcome.problem or error.message
            return error_response(error, request_id, request.path)
        except asyncio.CancelledError:
            outcome.status, outcome.problem = STATUS_CLIENT_GONE, "the client left or took nothing for too long"
            raise
        finally:
            self._account(request, request_id, outcome, started_s)

    def _call(
        self,
        request: web.BaseRequest,
        request_id: str,
        body: bytes,
        fields: RoutingFields | None,
        model: str,
        started_s: float,
        tenant: Tenant | None,
    ) -> Call:
        """What is known of the request. ApiError 400 if its route does not allow what it asks for."""
        salt = timeout_s = None
        if fields is not None:
            salt, timeout_s = self._tenants.salt(tenant, fields.cache_salt), fields.timeout_s
            if salt is not None:
                fields = msgspec.structs.replace(fields, cache_salt=salt)
        plan: RoutePlan | None = None
        planner, headers = self._picker.planner, request.headers
        if not planner.is_plain(model, headers):
            tenant_id = None if tenant is None else tenant.entry.id
            asker = Asker(request_id=request_id, headers=headers, body=body, fields=fields, tenant_id=tenant_id)
            plan = planner.plan(model, asker)
        return Call(
            request_id=request_id,
            model=model,
            targets=(model,) if plan is None else plan.targets,
            path=request.path,
            body=body,
            is_stream=fields is not None and fields.stream is True,
            first_byte_timeout_s=None if plan is None else plan.timeout_s,
            prompt=None,
            keep_key=self._settings.keep_key and tenant is None,
            headers=headers,
            fields=fields,
            tenant=tenant,
            arrived_s=started_s,
            deadline_s=started_s + timeout_s if timeout_s is not None and timeout_s > 0 else None,
            priority=0 if tenant is None else tenant.entry.priority,
            cache_salt=salt,
            route=None if plan is None or plan.entry is None else plan,
        )

    async def _read_large(self, path: str, body: bytes) -> Read:
        """What is read of the body, in a thread."""
        async with self._large:
            return await asyncio.to_thread(self._bodies.read, path, body)

    def _known(self, model: str | None, tenant: Tenant | None) -> str:
        """The name that the caller means. What a tenant may not use does not exist for it, in words and in lists alike."""
        if not self._pool.is_configured:
            raise unavailable("The router has not got its configuration yet.")
        if model is None:
            usable = self._tenants.visible(tenant, self._pool.models)
            if len(usable) == 1:
                return usable[0]
            raise invalid("model", "is required", "missing_required_parameter")
        is_served = self._pool.serving(model) is not None or self._pool.route(model) is not None
        if not is_served or not self._tenants.may_use(tenant, model):
            raise model_not_found(model, sorted(self._tenants.visible(tenant, self._pool.models)))
        return model

    def _account(self, request: web.BaseRequest, request_id: str, outcome: Outcome, started_s: float) -> None:
        model, first_byte_s, waited_s = outcome.model or UNKNOWN_MODEL, outcome.first_byte_s, outcome.waited_s
        total_s = self._clock() - started_s
        first_s = None if first_byte_s is None else first_byte_s - started_s
        self._metrics.count_request(model, outcome.status, total_s, first_s)
        if not self._settings.log_requests:
            return
        choice, target = outcome.choice, outcome.target
        self._line.log(
            request_id,
            request.path,
            model,
            None if target == model else target,
            outcome.status,
            outcome.attempts,
            outcome.resumes or None,
            # in ms, to one place; `round` would take three times as long
            (int(waited_s * 10_000 + 0.5) / 10 or None) if waited_s else None,
            None if first_s is None else int(first_s * 10_000 + 0.5) / 10,
            int(total_s * 10_000 + 0.5) / 10,
            *_NOT_CHOSEN
            if choice is None
            else (choice.endpoint_id, choice.level, choice.matched_tokens, choice.num_tokens, choice.reason),
            outcome.problem or None,
        )


_NOT_CHOSEN = (None,) * 5


def _later(delay_s: float, work: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(delay_s, work)


def _body_at_hand(request: web.BaseRequest, max_bytes: int) -> bytes | None:
    """The whole body, if it has come already and nothing is to be done about it. ApiError 413 if it is too large."""
    if type(request) is PlainRequest:
        if len(request.whole) > max_bytes:
            raise body_too_large(max_bytes)
        return request.whole
    content = request.content
    if not content.is_eof() or content.exception() is not None or hdrs.CONTENT_ENCODING in request.headers:
        return None
    body = content.read_nowait()
    if len(body) > max_bytes:
        raise body_too_large(max_bytes)
    return body


async def _read_body(request: web.BaseRequest, max_bytes: int) -> bytes:
    """The whole body. ApiError 413 if it is too large, 408 if it does not come, 400 if it cannot be decoded."""
    content = request.content
    try:
        if content.is_eof():
            body = take_arrived(content)
            if len(body) > max_bytes:
                raise body_too_large(max_bytes)
        else:
            if request.content_length is not None and request.content_length > max_bytes:
                raise body_too_large(max_bytes)
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise body_too_large(max_bytes) from None
    except web.RequestPayloadError:
        raise ApiError(
            400, "The body does not have the Content-Encoding or Transfer-Encoding it claims.", code="invalid_http"
        ) from None
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_TIMEOUT_S:g} s.", code="request_timeout") from None
    encodings = request.headers.getall(hdrs.CONTENT_ENCODING, None)
    return body if encodings is None else await decoded(body, ",".join(encodings), max_bytes)
