"""What belongs to the release as a whole: the routers' shards and the trust Secrets. This module must not know decisions."""

from collections.abc import Iterable, Mapping
from typing import Any

from quire_contract.kube.resources import INFERENCE_SERVICE
from quire_operator.api.validation import Problem
from quire_operator.cache import ClusterCache
from quire_operator.platform import Platform
from quire_operator.router_shards import RouterOwner, RouterShards, ShardEntry
from quire_operator.trust_secret import TrustSecrets
from quire_operator.work_queue import PermanentError

_OWNED_CHECK_S = 600.0
_ORPHAN_CHECK_S = 10.0
_MAX_OWNERS = 8
"""The oldest services keep the copy alive: not all of them, or each new one would be a write of ever more owners."""


class Release:
    """Writes what all services share."""

    def __init__(
        self, *, cache: ClusterCache, shards: RouterShards, trust: TrustSecrets, owner: RouterOwner, platform: Platform
    ) -> None:
        """The platform has a namespace."""
        assert platform.namespace is not None
        self._namespace: str = platform.namespace
        self._cache = cache
        self._shards = shards
        self._trust = trust
        self._owner = owner

    async def write(self, entries: Iterable[ShardEntry]) -> float:
        """Shards and the release's own Secret. The seconds after which to look again: soon, while the router has no Deployment."""
        owner = await self._owner.reference()
        await self._shards.write(entries, owner)
        problem = await self._ensure_own_trust()
        if problem is not None:
            raise PermanentError(str(problem))
        return _OWNED_CHECK_S if owner else _ORPHAN_CHECK_S

    async def ensure_trust(self, namespace: str) -> tuple[Problem, ...]:
        """The Secret is there for the pods of `namespace`, as long as one of its services is."""
        problem = await self._ensure_own_trust()
        if problem is None and namespace != self._namespace:
            owners = [_reference(service) for service in self._cache.services_of(namespace)[:_MAX_OWNERS]]
            problem = await self._trust.ensure(namespace, owners)
        return () if problem is None else (problem,)

    async def _ensure_own_trust(self) -> Problem | None:
        """It has no owner: workers outlive the release, and the next one must know them, and mount it in new pods, as this one did."""
        return await self._trust.ensure(self._namespace, [])


def _reference(service: Mapping[str, Any]) -> dict[str, Any]:
    meta = service["metadata"]
    return {
        "apiVersion": INFERENCE_SERVICE.api_version,
        "kind": INFERENCE_SERVICE.kind,
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": False,
        "blockOwnerDeletion": False,
    }
