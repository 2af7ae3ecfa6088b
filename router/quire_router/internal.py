"""What the release's other parts ask of a router: never open to tenants, whatever keys they hold."""

from aiohttp import web

from quire_contract.openai.errors import unauthorized
from quire_contract.trust import Trust, presented_token
from quire_router.call import Tenant
from quire_router.responses import json_response
from quire_router.revision_stats import RevisionStats


class InternalApi:
    """Answers to holders of the release's token. Without a trust folder nobody can hold it, so nobody is answered."""

    def __init__(self, trust: Trust | None, stats: RevisionStats) -> None:
        self._trust = trust
        self._stats = stats

    async def revision_stats(
        self, request: web.BaseRequest, request_id: str, tenant: Tenant | None = None
    ) -> web.StreamResponse:
        """The counters of every revision since the process began. ApiError 401 without the token."""
        if self._trust is None or not self._trust.admits(presented_token(request.headers)):
            raise unauthorized("This path is for the release's own parts; send the token of the trust folder.")
        return json_response(self._stats.shown(), request_id)
