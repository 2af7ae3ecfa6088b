"""The shards of a release's configuration: the operator's and the chart's ConfigMaps, each with its last good content.

A shard that cannot be used keeps none of the others from being used. One that never could be in this process is lost, and what it may
hold decides what its loss costs: tenants or their requirement, then nobody is let in without a key; settings, then the last known
ones hold, or, with none known, nothing is served: without its filters an endpoint must not open. A shard that is deleted with the last
tenants is lost, too: the operator, which has none to tell of, writes that into a shard.
This module must not know how the objects got here.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from quire_contract.router_config import SHARD_KEY, RouterConfig, RouterConfigError, decode_config
from quire_contract.telemetry import log_event
from quire_router.worker_pods import key_of

log = logging.getLogger("quire_router.kube")

_DELETED = "DELETED"
_GUARDING = frozenset({"tenants", "require_tenant"})
_SETTINGS = "settings"

Document = Mapping[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What shards may hold that nobody could read so far."""

    settings: bool = False
    tenants: bool = False


class Shards:
    """The ConfigMaps, by namespace and name."""

    def __init__(self, check: Callable[[RouterConfig, str], None] | None = None) -> None:
        """`check` raises RouterConfigError, which names the source, for what the contract cannot tell."""
        self._check = check
        self._shards: dict[Key, RouterConfig] = {}
        self._refused: dict[Key, str] = {}
        self._lost: dict[Key, Lost] = {}
        self._missed: set[Key] = set()
        """Deleted while they held tenants."""
        self._told: set[Key] = set()
        self.num_refusals = 0
        """Contents that were refused."""

    @property
    def ordered(self) -> list[RouterConfig]:
        """By number: `<release>-router-config-<n>`."""
        return [self._shards[key] for key in sorted(self._shards, key=lambda key: (len(key[1]), key))]

    @property
    def num_refused(self) -> int:
        """Shards whose present content is not used."""
        return len(self._refused)

    @property
    def lost(self) -> Lost:
        """What is missing because of shards that never had a good content."""
        lost = self._lost.values()
        tenants = bool(self._missed) or any(one.tenants for one in lost)
        return Lost(settings=any(one.settings for one in lost), tenants=tenants)

    def replace(self, documents: Sequence[Document]) -> None:
        """These are all there are."""
        for key in (self._shards.keys() | self._refused.keys()) - {key_of(document) for document in documents}:
            self._drop(key)
        for document in documents:
            self._take(document)
        self._look_for_tenants()

    def change(self, event: str, document: Document) -> None:
        """One came, changed or went."""
        if event == _DELETED:
            self._drop(key_of(document))
        else:
            self._take(document)
        self._look_for_tenants()

    def _drop(self, key: Key) -> None:
        gone = self._shards.pop(key, None)
        if gone is not None and gone.tenants:
            self._missed.add(key)
        for known in (self._refused, self._lost):
            known.pop(key, None)

    def _look_for_tenants(self) -> None:
        """A surplus shard's tenants are in another one by then."""
        if any(shard.tenants for shard in self._shards.values()):
            self._missed.clear()
        for key in self._missed - self._told:
            problem = f"ConfigMap {key[0]}/{key[1]} was deleted with the last tenants; until it is back nobody is let in without a key"
            log_event(log, logging.ERROR, "tenants_missing", problem=problem)
        self._told = set(self._missed)

    def _take(self, document: Document) -> None:
        key = key_of(document)
        content = (document.get("data") or {}).get(SHARD_KEY) or ""
        source = f"ConfigMap {key[0]}/{key[1]}, {SHARD_KEY}"
        try:
            if not content:
                raise RouterConfigError(f"{source}: is missing or empty")
            config = decode_config(content.encode(), source)
            if self._check is not None:
                self._check(config, source)
        except RouterConfigError as error:
            self._refuse(key, content, str(error))
        else:
            self._shards[key] = config
            self._refused.pop(key, None)
            self._lost.pop(key, None)
            self._missed.discard(key)

    def _refuse(self, key: Key, content: str, problem: str) -> None:
        is_lost = key not in self._shards
        if self._refused.get(key) != problem:
            self.num_refusals += 1
            kept = "nothing" if is_lost else "its last good one"
            log_event(log, logging.ERROR, "configuration_refused", kept=kept, problem=problem)
        self._refused[key] = problem
        if is_lost:
            self._lost[key] = _may_hold(content)


def desired_with_lost(config: RouterConfig, lost: Lost, last: RouterConfig | None) -> RouterConfig | None:
    """`config` made safe for what is lost; `last` was in force before. None: nothing may be served."""
    if lost.settings:
        if last is None:
            return None
        config = msgspec.structs.replace(config, settings=last.settings)
    if lost.tenants:
        config = msgspec.structs.replace(config, require_tenant=True)
    return config


def _may_hold(content: str) -> Lost:
    """Everything, if it is not even an object."""
    try:
        found = msgspec.json.decode(content.encode(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Lost(settings=True, tenants=True)
    return Lost(settings=_SETTINGS in found, tenants=bool(_GUARDING & found.keys()))
