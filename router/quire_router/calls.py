"""Takes one call that goes to a worker: reads its body, finds its model, has it answered, and accounts for it.

Only what the router must know is checked here; the rest of the body is the worker's to judge.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import hdrs, web

from quire_contract.openai.errors import (
    CODE_INVALID_JSON,
    ApiError,
    body_too_large,
    invalid,
    model_not_found,
    unavailable,
)
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import RoutingFields
from quire_contract.routing import PATHS_WITH_PROMPT, routing_fields
from quire_contract.telemetry import log_event
from quire_router.admission import ranked
from quire_router.answer import Source
from quire_router.arrived import take_arrived
from quire_router.call import STATUS_CLIENT_GONE, Call, Outcome, Tenant
from quire_router.content_encoding import decoded
from quire_router.delivery import deliver
from quire_router.endpoint_pool import EndpointPool
from quire_router.metrics import UNKNOWN_MODEL, RouterMetrics
from quire_router.picker import Picker
from quire_router.responses import error_response
from quire_router.route_plan import Asker
from quire_router.scoring import Choice
from quire_router.tenants import TenantBook

log = logging.getLogger("quire_router.request")

BODY_TIMEOUT_S = 60.0
"""For a client to send its body."""
LARGE_BODY_BYTES = 256 * 1024
"""Parsing more than this takes milliseconds, in which no stream would go on."""


class ModelField(msgspec.Struct, frozen=True):
    """The one field that routes a call without a prompt."""

    model: str | None = None


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
        self._large = asyncio.Semaphore(1)
        """Large bodies are parsed in a thread, one after the other: several at once would keep the interpreter from all other requests."""

    async def handle(
        self, request: web.BaseRequest, request_id: str, tenant: Tenant | None = None
    ) -> web.StreamResponse:
        """The answer: a worker's, or an error of our own."""
        started_s = self._clock()
        outcome = Outcome()
        try:
            call = await self._read(request, request_id, outcome, started_s, tenant)
            answer = await self._source(call, outcome)
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

    async def _read(
        self, request: web.BaseRequest, request_id: str, outcome: Outcome, started_s: float, tenant: Tenant | None
    ) -> Call:
        body = await _read_body(request, self._settings.limits.max_body_bytes)
        fields, named = await self._fields(request.path, body)
        outcome.model = model = self._known(named, tenant)
        salt = None if fields is None else self._tenants.salt(tenant, fields.cache_salt)
        if fields is not None and salt is not None:
            fields = msgspec.structs.replace(fields, cache_salt=salt)
        asker = Asker(
            request_id=request_id,
            headers=request.headers,
            body=body,
            fields=fields,
            tenant_id=None if tenant is None else tenant.entry.id,
        )
        plan = self._picker.planner.plan(model, asker)
        call = Call(
            request_id=request_id,
            model=model,
            targets=plan.targets,
            path=request.path,
            body=body,
            is_stream=fields is not None and fields.stream is True,
            first_byte_timeout_s=plan.timeout_s,
            prompt=None,
            keep_key=self._settings.keep_key and tenant is None,
            headers=request.headers,
            fields=fields,
            tenant=tenant,
            arrived_s=started_s,
            cache_salt=salt,
            route=None if plan.entry is None else plan,
        )
        return ranked(call)

    async def _fields(self, path: str, body: bytes) -> tuple[RoutingFields | None, str | None]:
        """What the body says of its prompt (None: the path has none), and its model. ApiError."""
        if len(body) <= LARGE_BODY_BYTES:
            return _fields_of(path, body, self._settings.limits)
        async with self._large:
            return await asyncio.to_thread(_fields_of, path, body, self._settings.limits)

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
        model = outcome.model or UNKNOWN_MODEL
        total_s = self._clock() - started_s
        first_s = None if outcome.first_byte_s is None else outcome.first_byte_s - started_s
        self._metrics.count_request(model, outcome.status, total_s, first_s)
        if not self._settings.log_requests:
            return
        choice = outcome.choice
        fields = {} if choice is None else _chosen(choice)
        log_event(
            log,
            logging.INFO,
            "request",
            request_id=request_id,
            path=request.path,
            model=model,
            target=None if outcome.target == model else outcome.target,
            status=outcome.status,
            attempts=outcome.attempts,
            resumes=outcome.resumes or None,
            waited_ms=round(outcome.waited_s * 1000, 1) or None,
            first_byte_ms=None if first_s is None else round(first_s * 1000, 1),
            total_ms=round(total_s * 1000, 1),
            **fields,
            problem=outcome.problem or None,
        )


def _chosen(choice: Choice) -> dict[str, Any]:
    """The choice for a log line."""
    return {
        "endpoint": choice.endpoint_id,
        "ladder_level": choice.level,
        "cached_tokens": choice.matched_tokens,
        "prompt_tokens": choice.num_tokens,
        "why": choice.reason,
    }


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


def _fields_of(path: str, body: bytes, limits: Limits) -> tuple[RoutingFields | None, str | None]:
    fields = routing_fields(path, body, limits) if path in PATHS_WITH_PROMPT else None
    return fields, _model_of(body) if fields is None else fields.model


def _model_of(body: bytes) -> str | None:
    """`model` of a body without a prompt to route by. ApiError 400 if the body is no JSON object with a usable one."""
    try:
        return msgspec.json.decode(body, type=ModelField).model
    except msgspec.ValidationError as error:
        raise invalid("model", str(error), "invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code=CODE_INVALID_JSON) from None
