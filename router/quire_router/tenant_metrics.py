"""Metrics about tenants and about what routers share. Tenants' ids come from the configuration, so clients cannot make series.

Series with a tenant's name are in a registry of their own, which only the admin port shows: /metrics is open to whoever reaches the router.
"""

from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from quire_contract import names
from quire_router.call import Usage
from quire_router.prices import NANO

REJECTIONS = ("requests", "concurrency", "tokens", "tokens_day", "tokens_month", "balance", "unavailable")
CODES = ("2xx", "4xx", "429", "499", "5xx")


class _OfTenant:
    """Plain numbers since the last look: instruments with locks would cost each request several microseconds."""

    __slots__ = ("cached", "cost_nano", "output", "prompt", "rejections", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.rejections = dict.fromkeys(REJECTIONS, 0)
        self.prompt = self.cached = self.output = self.cost_nano = 0


class TenantMetrics:
    """One for the process."""

    def __init__(self, shared: CollectorRegistry) -> None:
        """`shared`: the registry of what everybody may see."""
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            names.QUIRE_ROUTER_TENANT_REQUESTS, "Tenants' requests by outcome.", ["tenant", "code"], registry=registry
        )
        self.tokens = Counter(
            names.QUIRE_ROUTER_TENANT_TOKENS, "Tokens that tenants used.", ["tenant", "kind"], registry=registry
        )
        self.cost = Counter(
            names.QUIRE_ROUTER_TENANT_COST, "What tenants' tokens cost, in the currency.", ["tenant"], registry=registry
        )
        self.rejections = Counter(
            names.QUIRE_ROUTER_TENANT_REJECTIONS,
            "Requests refused by a limit.",
            ["tenant", "reason"],
            registry=registry,
        )
        self.redis_up = Gauge(
            names.QUIRE_ROUTER_REDIS_UP, "1 while Redis answers, 0 while it is away.", registry=shared
        )
        self.redis_errors = Counter(
            names.QUIRE_ROUTER_REDIS_ERRORS, "Calls of Redis that failed or took too long.", registry=shared
        )
        self.leases = Gauge(
            names.QUIRE_ROUTER_LIMIT_LEASES, "Limits of which this router holds units in advance.", registry=shared
        )
        self.usage_queued = Gauge(
            names.QUIRE_ROUTER_USAGE_QUEUED, "Usage records that are not in Redis yet.", registry=shared
        )
        self.usage_dropped = Counter(
            names.QUIRE_ROUTER_USAGE_DROPPED,
            "Usage records that found no room while Redis was away.",
            registry=shared,
        )
        self._by_tenant: dict[str, _OfTenant] = {}

    def show(self, *, redis_up: Callable[[], float], leases: Callable[[], float], queued: Callable[[], float]) -> None:
        """Where the gauges are read when somebody scrapes."""
        self.redis_up.set_function(redis_up)
        self.leases.set_function(leases)
        self.usage_queued.set_function(queued)

    def count(self, tenant: str, status: int, usage: Usage, cost_nano: int) -> None:
        """A request that limits let through has ended."""
        mine = self._by_tenant.get(tenant) or self._of(tenant)
        mine.statuses[status] = mine.statuses.get(status, 0) + 1
        mine.prompt += usage.prompt
        mine.cached += usage.cached
        mine.output += usage.output
        mine.cost_nano += cost_nano

    def reject(self, tenant: str, reason: str) -> None:
        """A limit refused a request."""
        self._of(tenant).rejections[reason] += 1

    def keep_only(self, tenants: Collection[str]) -> None:
        """Forget tenants that are gone: in a long life their series would only become more."""
        gone = [tenant for tenant in self._by_tenant if tenant not in tenants]
        if gone:
            self._tell()
        for tenant in gone:
            del self._by_tenant[tenant]
            self.cost.remove(tenant)
            for kind in ("prompt", "cached", "output"):
                self.tokens.remove(tenant, kind)
            for code in CODES:
                self.requests.remove(tenant, code)
            for reason in REJECTIONS:
                self.rejections.remove(tenant, reason)

    def render(self) -> bytes:
        """The text exposition format, of what only keepers may see."""
        self._tell()
        return generate_latest(self.registry)

    def _of(self, tenant: str) -> _OfTenant:
        found = self._by_tenant.get(tenant)
        if found is None:
            found = self._by_tenant[tenant] = _OfTenant()
        return found

    def _tell(self) -> None:
        """Into the instruments; all series of a tenant begin at once, at 0, so that they have rates."""
        for tenant, counted in self._by_tenant.items():
            for code in CODES:
                self.requests.labels(tenant, code)
            for status, number in counted.statuses.items():
                self.requests.labels(tenant, _code(status)).inc(number)
            for reason, number in counted.rejections.items():
                self.rejections.labels(tenant, reason).inc(number)
            for kind in ("prompt", "cached", "output"):
                self.tokens.labels(tenant, kind).inc(getattr(counted, kind))
            self.cost.labels(tenant).inc(counted.cost_nano / NANO)
            self._by_tenant[tenant] = _OfTenant()


def _code(status: int) -> str:
    return "2xx" if status < 300 else str(status) if status in (429, 499) else "4xx" if status < 500 else "5xx"
