"""The routers' configuration as ConfigMap shards: what each holds, and writing those that differ.

An entry's shard is a hash of its key, so a change rewrites one shard; their number doubles when one grows too large. While entries
move, they are for a moment in two shards, never in none. This module must not know how names or routes were accepted.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quire_contract import names
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import CONFIG_MAP, DEPLOYMENT
from quire_contract.router_config import MAX_SHARD_BYTES, SHARD_KEY, ModelEntry, RouteEntry, RouterConfig, ServiceEntry
from quire_contract.router_tenants import TenantEntry
from quire_contract.telemetry import log_event
from quire_operator.comparison import holds
from quire_operator.manifests import parts
from quire_operator.metrics import Metrics
from quire_operator.platform import Platform
from quire_operator.store import ObjectStore
from quire_operator.traffic import PLAIN, Traffic, model_entries, split_entry
from quire_operator.trimming import trim_object

logger = logging.getLogger(__name__)

SHARDS = "shards"
_MAX_SHARDS = 1024
_USUAL_SHARD_BYTES = MAX_SHARD_BYTES // 4
"""So large a shard becomes two: a change of one tenant is written and read as a shard, by every router."""


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """What stays together: a service with its names, a route, or a tenant."""

    key: str
    """Decides the shard."""
    models: tuple[ModelEntry, ...] = ()
    service: ServiceEntry | None = None
    route: RouteEntry | None = None
    tenant: TenantEntry | None = None


@dataclass(kw_only=True)
class _Shard:
    models: list[ModelEntry] = field(default_factory=list)
    services: list[ServiceEntry] = field(default_factory=list)
    routes: list[RouteEntry] = field(default_factory=list)
    tenants: list[TenantEntry] = field(default_factory=list)

    def text(self) -> str:
        config = RouterConfig(
            models=self.models, endpoints=[], services=self.services, routes=self.routes, tenants=self.tenants
        )
        return msgspec.json.encode(config).decode()


def service_entry(
    namespace: str, name: str, served: Iterable[str], weights: Mapping[str, int], traffic: Traffic = PLAIN
) -> ShardEntry:
    """A service, its names, and how its traffic is split and treated."""
    service = f"{namespace}/{name}"
    return ShardEntry(
        key=service, models=model_entries(service, served, traffic), service=split_entry(service, weights, traffic)
    )


def shard_texts(entries: Iterable[ShardEntry], max_bytes: int = _USUAL_SHARD_BYTES) -> list[str]:
    """The content of each shard: a power of two of them, as few as fit."""
    ordered = sorted(entries, key=lambda entry: entry.key)
    num_shards = 1
    while True:
        texts = [shard.text() for shard in _filled(ordered, num_shards)]
        if num_shards >= _MAX_SHARDS or all(len(text.encode()) <= max_bytes for text in texts):
            return texts
        num_shards *= 2


class RouterShards:
    """Writes the shards of one release."""

    def __init__(self, client: KubeClient, shards: ObjectStore, platform: Platform, metrics: Metrics) -> None:
        """`shards` holds the release's ConfigMaps as they are, under the index SHARDS. The platform has a namespace."""
        self._client = client
        self._shards = shards
        self._platform = platform
        self._metrics = metrics

    async def write(self, entries: Iterable[ShardEntry], owner: Mapping[str, Any] | None) -> None:
        """Make the shards say `entries`; `owner` is the router's owner reference, once it is known. Surplus shards go last."""
        manifests = [self._manifest(index, text, owner) for index, text in enumerate(shard_texts(entries))]
        for manifest in reversed(manifests):
            await self._apply(manifest)
        await self._remove_others({manifest["metadata"]["name"] for manifest in manifests})

    async def _apply(self, manifest: dict[str, Any]) -> None:
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        live = self._shards.get(CONFIG_MAP.kind, namespace, name)
        if live is not None and holds(live, manifest):
            self._metrics.skipped_applies.inc()
            return
        written = await self._client.apply(CONFIG_MAP, namespace, name, manifest, field_manager=parts.MANAGER)
        self._metrics.applies.labels(CONFIG_MAP.kind).inc()
        self._shards.put(trim_object(written))
        log_event(logger, logging.INFO, "router shard written", name=name, size_bytes=len(manifest["data"][SHARD_KEY]))

    async def _remove_others(self, wanted: set[str]) -> None:
        for live in self._shards.of(SHARDS):
            meta = live["metadata"]
            labels = meta.get("labels") or {}
            if meta["name"] in wanted or labels.get(names.LABEL_MANAGED_BY) != parts.MANAGER:
                continue  # the chart's settings are a shard, too
            try:
                await self._client.delete(CONFIG_MAP, meta["namespace"], meta["name"], uid=meta["uid"])
            except KubeError as error:
                if error.status not in (404, 409):
                    raise

    def _manifest(self, index: int, text: str, owner: Mapping[str, Any] | None) -> dict[str, Any]:
        labels = {
            **parts.common_labels(self._platform.release, "router"),
            names.LABEL_ROUTER_CONFIG: self._platform.release,
        }
        meta = parts.metadata(f"{self._platform.router_name}-config-{index}", self._platform.namespace, labels)
        if owner is not None:
            meta["ownerReferences"] = [dict(owner)]
        return {
            "apiVersion": CONFIG_MAP.api_version,
            "kind": CONFIG_MAP.kind,
            "metadata": meta,
            "data": {SHARD_KEY: text},
        }


class RouterOwner:
    """The owner reference to the router's Deployment, looked up when it is not known and after some time."""

    def __init__(self, client: KubeClient, platform: Platform, clock: Callable[[], float]) -> None:
        self._client = client
        self._platform = platform
        self._clock = clock
        self._reference: dict[str, Any] | None = None
        self._looked_s = float("-inf")

    async def reference(self) -> dict[str, Any] | None:
        """None while there is no such Deployment. KubeError if the server does not tell."""
        max_age_s = 600.0 if self._reference is not None else 10.0
        if self._clock() - self._looked_s < max_age_s:
            return self._reference
        name = self._platform.router_name
        try:
            live = await self._client.get(DEPLOYMENT, self._platform.namespace, name)
        except KubeError as error:
            if error.status != 404:
                raise
            self._reference = None
        else:
            self._reference = {
                "apiVersion": DEPLOYMENT.api_version,
                "kind": DEPLOYMENT.kind,
                "name": name,
                "uid": live["metadata"]["uid"],
                "controller": False,
                "blockOwnerDeletion": False,
            }
        self._looked_s = self._clock()
        return self._reference


def _filled(entries: Sequence[ShardEntry], num_shards: int) -> list[_Shard]:
    shards = [_Shard() for _ in range(num_shards)]
    for entry in entries:
        digest = hashlib.sha256(entry.key.encode()).digest()
        shard = shards[int.from_bytes(digest[:8], "big") % num_shards]
        shard.models += entry.models
        if entry.service is not None:
            shard.services.append(entry.service)
        if entry.route is not None:
            shard.routes.append(entry.route)
        if entry.tenant is not None:
            shard.tenants.append(entry.tenant)
    return shards
