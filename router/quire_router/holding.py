"""What waits in the router's memory, in requests and bytes: in all, of each service, of each tenant. State and pure decisions.

One service that has no worker, and one tenant that asks for more than is served, must leave room for the others: where there are several,
none of them has more than its share. Everybody without a tenant shares what all have.
"""

from quire_contract.router_config import RouterConfig
from quire_contract.router_settings import AdmissionSettings
from quire_router.line import ANONYMOUS, Line, Waiter

MEBIBYTE = 1024 * 1024


class Holding:
    """One for the process."""

    def __init__(self) -> None:
        self.size_bytes = 0
        """Of the bodies of all that wait."""
        self._of_line: dict[Line, int] = {}
        """Bytes."""
        self._of_tenant: dict[str, tuple[int, int]] = {}
        """(requests, bytes)."""
        self.apply(AdmissionSettings(), RouterConfig(models=[], endpoints=[]))

    def apply(self, rules: AdmissionSettings, config: RouterConfig) -> None:
        """Bounds for whoever comes from now on."""
        self._most_bytes = rules.max_queued_mib * MEBIBYTE
        services = {model.service for model in config.models}
        of_service = rules.max_queued_service_percent if len(services) > 1 else 100
        of_tenant = rules.max_queued_tenant_percent if len(config.tenants) > 1 else 100
        self._line_bytes = self._most_bytes * of_service // 100
        self._tenant_bytes = self._most_bytes * of_tenant // 100
        self._tenant_requests = max(1, rules.max_queued_requests * of_tenant // 100) if of_tenant < 100 else None

    def add(self, waiter: Waiter, lines: list[Line]) -> None:
        """It waits, in those lines."""
        self._change(waiter, lines, 1)

    def remove(self, waiter: Waiter, lines: list[Line]) -> None:
        """It waits no longer; `lines` are those that it still waited in."""
        self._change(waiter, lines, -1)

    def leave(self, waiter: Waiter, line: Line) -> None:
        """It waits no longer in this line, but in others."""
        self._change_line(line, -waiter.ticket.size_bytes)

    def too_many_bytes(self, waiter: Waiter) -> int:
        """How much must go before its body can be kept; 0 or less: nothing."""
        return self.size_bytes + waiter.ticket.size_bytes - self._most_bytes

    def has_share(self, line: Line, waiter: Waiter) -> bool:
        """Whether the line may hold its body too."""
        return self._of_line.get(line, 0) + waiter.ticket.size_bytes <= self._line_bytes

    def tenant_has_share(self, waiter: Waiter) -> bool:
        """Whether its tenant may have it wait too."""
        tenant = _tenant(waiter)
        if tenant == ANONYMOUS:
            return True
        requests, size_bytes = self._of_tenant.get(tenant, (0, 0))
        is_many = self._tenant_requests is not None and requests >= self._tenant_requests
        return not is_many and size_bytes + waiter.ticket.size_bytes <= self._tenant_bytes

    def _change(self, waiter: Waiter, lines: list[Line], sign: int) -> None:
        size_bytes, tenant = sign * waiter.ticket.size_bytes, _tenant(waiter)
        self.size_bytes += size_bytes
        for line in lines:
            self._change_line(line, size_bytes)
        if tenant != ANONYMOUS:
            requests, held_bytes = self._of_tenant.get(tenant, (0, 0))
            self._of_tenant[tenant] = (requests + sign, held_bytes + size_bytes)
            if requests + sign == 0:
                del self._of_tenant[tenant]

    def _change_line(self, line: Line, size_bytes: int) -> None:
        held_bytes = self._of_line.get(line, 0) + size_bytes
        if held_bytes:
            self._of_line[line] = held_bytes
        else:
            self._of_line.pop(line, None)


def _tenant(waiter: Waiter) -> str:
    return ANONYMOUS if waiter.call.tenant is None else waiter.call.tenant.entry.id
