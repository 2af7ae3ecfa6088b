"""Accounts of what is limited, and the store that keeps them: in this process, or in Redis for all routers (`redis_store`).

    used (in the window) + held by every router  <=  limit

A router holds units in advance and spends them without asking anybody; what it spent it reports with its next order, as the total of its
life, so that a report may be repeated. What it no longer needs it gives back in the same way. It must not know tenants or requests.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

ONLY_HELD = -1
"""The window of an account of which nothing is used up: requests at the same time."""
FOR_LIFE = 0
"""The window of an account whose key says its period: all that was used counts."""
MINUTE_S = 60
HELD_WAIT_S = 1.0
"""Units that others hold may come back at any time; it is worth asking again after so long."""
_PRUNE_EVERY = 4096


class Order(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One router's word to one account. Units are whatever the account counts."""

    key: str
    window_s: int
    """Sliding, in whole seconds; FOR_LIFE or ONLY_HELD."""
    limit: int | None
    """None: counted only."""
    total: int
    """Used by this router since it began."""
    acked: int = 0
    """Of that, what the account had when it last answered."""
    known: int = 0
    """The account's use, everybody's, as of then."""
    epoch: str = ""
    """The account's name for its own life as of then; empty: it never answered. Another one: it was lost in between."""
    reports: str = ""
    """What the account said of its routers' reports then: to be brought back as it was, should the account be lost."""
    need: int = 0
    """Stays held, whatever the limit says: for work that has begun."""
    want: int = 0
    """To be held beside, if the limit allows it."""
    least: int = 0
    """Less of `want` than this is of no use."""
    life_s: int = 3600
    """The account may be forgotten after so long without a word; 0: never."""


class Grant(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The account's answer."""

    extra: int
    """Of `want`: held from now on."""
    used: int
    """In the window, by everybody."""
    others: int
    """Held by other routers."""
    wait_s: float
    """Until `least` may be had; 0 if it was granted."""
    epoch: str = ""
    reports: str = ""
    """Of all routers, as far as the account had them."""
    confirmed: bool = True
    """Whether the account itself answered, not somebody in its place."""


class LimitsUnavailableError(Exception):
    """The store is away, and nobody may stand in for it."""


class LimitStore(Protocol):
    """Keeps accounts."""

    def at_once(self, orders: Sequence[Order]) -> list[Grant] | None:
        """The answers where nobody needs to be asked; None: use `exchange`. LimitsUnavailableError."""
        ...

    async def exchange(self, orders: Sequence[Order]) -> list[Grant]:
        """The answers, in order, within a fraction of a second. LimitsUnavailableError."""
        ...


class LocalAccounts:
    """In this process, for this process alone. `wall_clock`: Unix time in seconds."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._accounts: dict[str, _Account] = {}
        self._num_orders = 0

    def at_once(self, orders: Sequence[Order]) -> list[Grant]:
        """The answers."""
        now_s = self._wall_clock()
        self._prune(now_s)
        return [self._answer(order, now_s) for order in orders]

    async def exchange(self, orders: Sequence[Order]) -> list[Grant]:
        """As `at_once`."""
        return self.at_once(orders)

    def note(self, order: Order, used: int) -> None:
        """An account elsewhere answered that so much is used: go on from there, should it go away."""
        now_s = self._wall_clock()
        account = self._account(order, now_s)
        account.reported = order.total
        account.used = 0
        account.slots = {}
        account.add(order.window_s, used, now_s)

    def _answer(self, order: Order, now_s: float) -> Grant:
        account = self._account(order, now_s)
        account.add(order.window_s, max(0, order.total - account.reported), now_s)
        account.reported = max(account.reported, order.total)
        used = account.used_now(order.window_s, now_s)
        if order.limit is None:
            return Grant(extra=order.want, used=used, others=0, wait_s=0.0)
        free = order.limit - used - order.need
        if order.want == 0 or free >= max(order.least, 1):
            return Grant(extra=max(0, min(order.want, free)), used=used, others=0, wait_s=0.0)
        wait_s = wait_for(account.slots, order.window_s, order.least - free, now_s)
        return Grant(extra=0, used=used, others=0, wait_s=wait_s)

    def _account(self, order: Order, now_s: float) -> "_Account":
        account = self._accounts.get(order.key)
        if account is None:
            account = self._accounts[order.key] = _Account()
        account.until_s = now_s + order.life_s if order.life_s else float("inf")
        return account

    def _prune(self, now_s: float) -> None:
        self._num_orders += 1
        if self._num_orders % _PRUNE_EVERY == 0:
            self._accounts = {key: account for key, account in self._accounts.items() if account.until_s > now_s}


class _Account:
    __slots__ = ("reported", "slots", "until_s", "used")

    def __init__(self) -> None:
        self.used = 0
        self.slots: dict[int, int] = {}
        """Unix second -> used in it, oldest first; of a sliding window."""
        self.reported = 0
        self.until_s = 0.0

    def add(self, window_s: int, number: int, now_s: float) -> None:
        if window_s == FOR_LIFE:
            self.used += number
        elif window_s > 0 and number:
            self.slots[int(now_s)] = self.slots.get(int(now_s), 0) + number

    def used_now(self, window_s: int, now_s: float) -> int:
        if window_s <= 0:
            return self.used
        for second in [second for second in self.slots if second + window_s + 1 <= now_s]:
            del self.slots[second]
        return sum(self.slots.values())


def wait_for(slots: dict[int, int], window_s: int, missing: int, now_s: float) -> float:
    """Seconds until `missing` units leave the window; HELD_WAIT_S where it is not the window that holds them."""
    for second in sorted(slots):
        missing -= slots[second]
        if missing <= 0:
            return max(0.001, second + window_s + 1 - now_s)
    return HELD_WAIT_S
