"""One limit of one tenant as one router holds it: units held in advance, reserved before work and settled after it.

    held = reserved for requests that run + available now

It must not know tenants, requests, or how an account is asked.
"""

from collections.abc import Sequence
from typing import Literal

from quire_router.limits.accounts import ONLY_HELD, Grant, Order

Name = Literal["requests", "concurrency", "tokens", "tokens_day", "tokens_month", "balance"]
REFUSAL_S = 0.2
"""A refusal is repeated without asking for so long at most, so that a client that does not stop costs little."""
_NEVER_AGAIN = float("inf")


Demands = Sequence[tuple["Meter", int]]
"""What is asked of meters that have a limit."""


class RefusedError(Exception):
    """A limit does not allow it."""

    def __init__(self, meter: "Meter", demand: int, wait_s: float) -> None:
        """`wait_s`: seconds until it would; infinite: it never would, as it stands."""
        super().__init__(meter.name)
        self.meter = meter
        self.demand = demand
        self.wait_s = wait_s


class Meter:
    """One limit of one tenant in one period."""

    __slots__ = (
        "acked",
        "epoch",
        "free",
        "held",
        "is_used",
        "key",
        "known",
        "lease_percent",
        "least",
        "life_s",
        "limit",
        "limit_text",
        "name",
        "refused_least",
        "refused_s",
        "refused_until_s",
        "reports",
        "reserved",
        "sent_s",
        "spare",
        "total",
        "wanted",
        "window_s",
    )

    def __init__(self, name: Name, key: str, window_s: int, life_s: int) -> None:
        self.name: Name = name
        self.key = key
        self.window_s = window_s
        self.life_s = life_s
        self.limit: int | None = None
        self.limit_text = ""
        self.lease_percent = 0
        self.held = 0
        self.reserved = 0
        self.total = 0
        """Used by this router since it began."""
        self.acked = 0
        self.known = 0
        self.epoch = self.reports = ""
        self.free: int | None = None
        """Of the limit, neither used nor held by anybody when the account last answered."""
        self.spare = 0
        """What is held in advance: the lease, and little of what is left when little is left. A lease of one is none."""
        self.is_used = False
        """Whether anything was reserved since the last look."""
        self.wanted = 0
        self.least = 0
        self.refused_until_s = 0.0
        self.refused_least = 0
        self.refused_s = 0.0
        self.sent_s = float("-inf")

    @property
    def available(self) -> int:
        """Units that may be reserved at once."""
        return self.held - self.reserved

    @property
    def remaining(self) -> int:
        """Of the limit, what this router believes is left for it."""
        if self.limit is None:
            return 0
        limit = self.limit
        left = (limit - self.total if self.free is None else self.free) + self.held - self.reserved
        return 0 if left < 0 else left if left < limit else limit

    def plan(self, limit: int | None, lease_percent: int) -> None:
        """Hold to `limit` from now on, and `lease_percent` of it in advance."""
        self.limit = limit
        self.limit_text = "" if limit is None else str(limit)
        self.lease_percent = lease_percent
        self.free = None
        self.refused_until_s = 0.0
        self._set_spare()

    def _set_spare(self) -> None:
        free = self.limit if self.free is None else max(0, self.free)
        lease = 0 if self.limit is None or free is None else min(self.limit, free) * self.lease_percent // 100
        self.spare = lease if lease > 1 else 0

    def order(self, now_s: float, *, keep: int) -> Order:
        """What to tell the account now: `keep` units stay available, more is given back from this moment on."""
        self.held = self.reserved + max(0, min(self.available, keep))
        if self.window_s > 0 and now_s - self.sent_s > self.window_s:
            self.known = 0
        want, self.wanted = self.wanted, 0
        least, self.least = self.least, 0
        if want:
            least = max(1, least - self.available)
            want = max(least, want - self.available) + self.spare
        return Order(
            key=self.key,
            window_s=self.window_s,
            limit=self.limit,
            total=self.total,
            acked=self.acked,
            known=self.known,
            epoch=self.epoch,
            reports=self.reports,
            need=self.held,
            want=want,
            least=least,
            life_s=self.life_s,
        )

    def take(self, order: Order, grant: Grant, now_s: float) -> None:
        """The account's answer to `order`."""
        self.held += grant.extra
        if grant.confirmed:
            self.acked, self.known, self.epoch = order.total, grant.used, grant.epoch
            self.reports = grant.reports
            self.sent_s = now_s
        if self.limit is not None:
            self.free = self.limit - grant.used - grant.others - order.need - grant.extra
            self._set_spare()
        if grant.wait_s:
            self.refused_s = now_s + grant.wait_s
            self.refused_until_s = now_s + min(grant.wait_s, REFUSAL_S if self.window_s != ONLY_HELD else REFUSAL_S / 4)
            self.refused_least = order.least

    def refusal(self, demand: int, now_s: float) -> RefusedError | None:
        """Why not to ask for `demand` at all; None: ask."""
        assert self.limit is not None, "only what is limited is short"
        if demand > self.limit:
            return RefusedError(self, demand, _NEVER_AGAIN)
        if now_s < self.refused_until_s and demand - self.available >= self.refused_least:
            return RefusedError(self, demand, max(0.001, self.refused_s - now_s))
        return None

    @property
    def used(self) -> int:
        """In its window, by everybody, as far as is known here."""
        return self.known + self.total - self.acked

    @property
    def is_at_rest(self) -> bool:
        """Whether nobody needs to hear of it."""
        return not self.held and not self.reserved and self.total == self.acked
