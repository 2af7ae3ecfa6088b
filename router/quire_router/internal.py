"""What the release's other parts ask of a router: never open to tenants, whatever keys they hold."""

import re

from aiohttp import web

from quire_contract.demand_report import MAX_WAIT_S
from quire_contract.openai.errors import invalid, unauthorized
from quire_contract.trust import Trust, presented_token
from quire_router.call import Tenant
from quire_router.demand import Demand
from quire_router.responses import json_response
from quire_router.revision_stats import RevisionStats

_NUMBER = re.compile(r"[0-9]{1,15}")
_SECONDS = re.compile(r"[0-9]{1,5}(\.[0-9]{1,6})?")


class InternalApi:
    """Answers to holders of the release's token. Without a trust folder nobody can hold it, so nobody is answered."""

    def __init__(self, trust: Trust | None, stats: RevisionStats, demand: Demand) -> None:
        self._trust = trust
        self._stats = stats
        self._demand = demand

    async def revision_stats(
        self, request: web.BaseRequest, request_id: str, tenant: Tenant | None = None
    ) -> web.StreamResponse:
        """The counters of every revision since the process began. ApiError 401 without the token."""
        self._check(request)
        return json_response(self._stats.shown(), request_id)

    async def demand(
        self, request: web.BaseRequest, request_id: str, tenant: Tenant | None = None
    ) -> web.StreamResponse:
        """The demand report, at once or as `since` and `wait` ask. ApiError 401 without the token, 400 for a wrong question."""
        self._check(request)
        since, wait = request.query.get("since"), request.query.get("wait", "0")
        if since is not None and not _NUMBER.fullmatch(since):
            raise invalid("since", "must be the number `edge` of an earlier report")
        if not _SECONDS.fullmatch(wait):
            raise invalid("wait", "must be a number of seconds such as 5")
        wait_s = min(float(wait), MAX_WAIT_S)
        report = await self._demand.report(None if since is None else int(since), wait_s)
        return json_response(report, request_id)

    def _check(self, request: web.BaseRequest) -> None:
        if self._trust is None or not self._trust.admits(presented_token(request.headers)):
            raise unauthorized("This path is for the release's own parts; send the token of the trust folder.")
