"""The admin port: usage, tenants' limits and balances, why requests went where. For keepers of the release, never for tenants.

A port of its own with a token of its own; it listens on loopback unless told otherwise. It shows no prompt, no key and no digest of one.
"""

import asyncio
import contextlib
import datetime
import hmac
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from quire_contract import names
from quire_contract.openai.errors import (
    CODE_METHOD_NOT_ALLOWED,
    ApiError,
    invalid,
    path_not_found,
    unauthorized,
    unavailable,
)
from quire_contract.request_id import request_id_from
from quire_contract.router_tenants import TenantEntry
from quire_contract.trust import bearer_token
from quire_router.admin_usage import (
    MAX_LIMIT,
    RECORD_COLUMNS,
    Asked,
    csv_lines,
    grouped,
    limit_of,
    parse,
    record_row,
    sum_columns,
)
from quire_router.app import Handler
from quire_router.limits.meters import TenantMeters
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics
from quire_router.prices import decimal_of, nano
from quire_router.responses import error_response, json_response
from quire_router.server import RouterServer
from quire_router.tenancy import Tenancy
from quire_router.usage.record import UsageUnavailableError

MAX_BODY_BYTES = 64 * 1024
MAX_TENANTS = 100
_CSV = "text/csv; charset=utf-8"


class AdminApi:
    """Answers holders of the admin token."""

    def __init__(
        self,
        *,
        token: str,
        tenancy: Tenancy,
        live: LiveConfig,
        metrics: RouterMetrics,
        debug_route: Handler,
        wall_clock: Callable[[], float],
    ) -> None:
        """`token` is not empty. `wall_clock`: Unix time in seconds."""
        assert token, "an admin port is never open"
        self._token = token.encode()
        self._tenancy = tenancy
        self._live = live
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._routes: dict[str, Handler] = {
            names.PATH_ADMIN_USAGE: self._usage,
            names.PATH_ADMIN_TENANTS: self._tenants,
            names.PATH_DEBUG_ROUTE: debug_route,
            names.PATH_METRICS: self._show_metrics,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to any request."""
        request_id = request_id_from(request.headers.get(names.HEADER_REQUEST_ID))
        try:
            presented = bearer_token(request.headers) or ""
            if not hmac.compare_digest(presented.encode("utf-8", "replace"), self._token):
                raise unauthorized("Send the admin token as `Authorization: Bearer <token>`.")
            handler = self._routes.get(request.path)
            if handler is None:
                raise path_not_found(request.path)
            if request.method not in ("GET", "HEAD"):
                message = f"Use GET for {request.path}."
                raise ApiError(405, message, code=CODE_METHOD_NOT_ALLOWED, headers={"Allow": "GET"})
            return await handler(request, request_id, None)
        except UsageUnavailableError as error:
            return error_response(unavailable(str(error)), request_id)
        except ApiError as error:
            return error_response(error, request_id)

    async def _usage(self, request: web.BaseRequest, request_id: str, tenant: object) -> web.StreamResponse:
        today = datetime.datetime.fromtimestamp(self._wall_clock(), datetime.UTC).date()
        asked = parse(request.query, today)
        if asked.is_csv and request.method == "HEAD":  # a stream's parts would be written all the same
            return web.Response(headers=_csv_headers(request_id))
        if asked.group_by is not None:
            return await self._sums(request, asked, asked.group_by, request_id)
        if asked.is_csv:
            return await self._csv_records(request, asked, request_id)
        try:
            page = await self._tenancy.usage.page(asked.query, asked.cursor, asked.limit)
        except ValueError:
            raise invalid("cursor", "is no cursor of an earlier answer") from None
        shown = self._envelope(asked) | {
            "data": [record_row(record) for record in page.records],
            "has_more": page.cursor is not None,
            "cursor": page.cursor,
        }
        return json_response(shown, request_id)

    async def _sums(
        self, request: web.BaseRequest, asked: Asked, group_by: tuple[str, ...], request_id: str
    ) -> web.StreamResponse:
        sums = await self._tenancy.usage.sums(asked.query)
        rows = await asyncio.to_thread(
            grouped, sums, group_by
        )  # of many tenants and days: requests must not wait for it
        if asked.is_csv:
            return await _csv_sums(request, sum_columns(group_by), rows, request_id)
        start = 0 if asked.cursor is None else _offset(asked.cursor)
        end = start + asked.limit
        more = end < len(rows)
        shown = self._envelope(asked) | {"group_by": group_by, "data": rows[start:end], "has_more": more}
        return json_response(shown | {"cursor": str(end) if more else None}, request_id)

    async def _csv_records(self, request: web.BaseRequest, asked: Asked, request_id: str) -> web.StreamResponse:
        """All of them, page by page: what is in memory at a time is one page."""
        page = await self._tenancy.usage.page(asked.query, None, MAX_LIMIT // 10)
        response = web.StreamResponse(headers=_csv_headers(request_id))
        await response.prepare(request)
        await response.write(csv_lines(RECORD_COLUMNS, map(record_row, page.records), header=True))
        while page.cursor is not None:
            try:
                page = await self._tenancy.usage.page(asked.query, page.cursor, MAX_LIMIT // 10)
            except UsageUnavailableError:
                if request.transport is not None:
                    request.transport.abort()  # a file that was cut must not look whole
                return response
            await response.write(csv_lines(RECORD_COLUMNS, map(record_row, page.records), header=False))
        await response.write_eof()
        return response

    async def _tenants(self, request: web.BaseRequest, request_id: str, tenant: object) -> web.StreamResponse:
        limit = limit_of(request.query, MAX_TENANTS, MAX_TENANTS)
        wanted, after = request.query.get("tenant"), request.query.get("cursor", "")
        known = self._tenancy.tenants.tenants
        ids = sorted(i for i in known if (wanted is None or i == wanted) and i > after)
        data = [await self._tenant(known[i]) for i in ids[:limit]]
        more = len(ids) > limit
        shown = {"object": "list", "currency": self._live.settings.usage.currency, "data": data, "has_more": more}
        return json_response(shown | {"cursor": ids[limit - 1] if more else None}, request_id)

    async def _tenant(self, entry: TenantEntry) -> dict[str, Any]:
        meters = self._tenancy.meters.look_at(entry)
        await meters.refresh()
        spent = meters.balance.used
        shown = {
            "id": entry.id,
            "namespace": entry.namespace,
            "models": entry.models,
            "suspended": entry.suspended,
            "priority": entry.priority,
            "weight": entry.weight,
            "keys": [{"id": key.id, "expires_ts": key.expires_ts} for key in entry.keys],
            "limits": _limits(meters),
            "billing": entry.billing,
            "credit": entry.credit,
            "spent": decimal_of(spent),
        }
        return shown | {"balance": decimal_of(nano(entry.credit) - spent) if entry.billing == "prepaid" else None}

    async def _show_metrics(self, request: web.BaseRequest, request_id: str, tenant: object) -> web.StreamResponse:
        body = self._metrics.render() + self._tenancy.metrics.render()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _envelope(self, asked: Asked) -> dict[str, Any]:
        query = asked.query
        currency = self._live.settings.usage.currency
        return {"object": "list", "from": query.from_day, "to": query.to_day, "currency": currency}


@contextlib.asynccontextmanager
async def admin_listening(api: AdminApi, host: str, port: int) -> AsyncIterator[str]:
    """Accept connections; gives "http://host:port"."""
    runner = web.ServerRunner(RouterServer(api.handle, max_body_bytes=MAX_BODY_BYTES), shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def _csv_sums(
    request: web.BaseRequest, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], request_id: str
) -> web.StreamResponse:
    """A part at a time, each made in a thread."""
    response = web.StreamResponse(headers=_csv_headers(request_id))
    await response.prepare(request)
    for start in range(0, max(1, len(rows)), MAX_LIMIT):
        part = rows[start : start + MAX_LIMIT]
        await response.write(await asyncio.to_thread(csv_lines, columns, part, header=start == 0))
    await response.write_eof()
    return response


def _limits(meters: TenantMeters) -> dict[str, Any]:
    return {
        meter.name: {"limit": meter.limit, "used": meter.used, "remaining": meter.remaining, "reserved": meter.reserved}
        for meter in meters.current
        if meter.limit is not None and meter is not meters.balance
    }


def _offset(cursor: str) -> int:
    if not cursor.isdecimal() or len(cursor) > 9:
        raise invalid("cursor", "is no cursor of an earlier answer")
    return int(cursor)


def _csv_headers(request_id: str) -> dict[str, str]:
    return {
        "Content-Type": _CSV,
        "Content-Disposition": 'attachment; filename="usage.csv"',
        names.HEADER_REQUEST_ID: request_id,
    }
