"""How many services may move to a new default image at once. Keeps nothing: what it knows comes from the decisions.

This module must not know what an upgrade is.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)


class UpgradeGate(Generic[KeyT]):
    """Admits up to `limit` services; those that found it full are asked again, in their order, when a place is free."""

    def __init__(self, limit: int, ask_again: Callable[[KeyT], None]) -> None:
        """The gate is closed until `open`, so that upgrades that a former leader began are counted first."""
        self._limit = limit
        self._ask_again = ask_again
        self._is_open = False
        self._upgrading: set[KeyT] = set()
        self._refused: dict[KeyT, None] = {}

    def open(self) -> None:
        """All services have been decided once: admit new ones."""
        if not self._is_open:
            self._is_open = True
            self._ask_all_again()

    def may_upgrade(self, key: KeyT) -> bool:
        """Whether `key` may begin or go on."""
        return key in self._upgrading or (self._is_open and len(self._upgrading) < self._limit)

    def decided(self, key: KeyT, *, may_upgrade: bool, is_upgrading: bool) -> None:
        """What became of the answer. Called right after the decision that it was given to, with no other decision between."""
        self._refused.pop(key, None)
        if is_upgrading:
            self._upgrading.add(key)
            return
        if not may_upgrade:
            self._refused[key] = None
        self._leave(key)

    def forget(self, key: KeyT) -> None:
        """The service is gone."""
        self._refused.pop(key, None)
        self._leave(key)

    def _leave(self, key: KeyT) -> None:
        if key in self._upgrading:
            self._upgrading.discard(key)
            self._ask_all_again()

    def _ask_all_again(self) -> None:
        """All, for who wants to upgrade shows only in a decision; the first that does takes the place."""
        refused, self._refused = list(self._refused), {}
        for key in refused:
            self._ask_again(key)
