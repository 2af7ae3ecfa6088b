"""From `kubectl apply` to the router: what is said of tenants, routes and services arrives, at once and as a whole."""

import asyncio
import random
import time
from contextlib import asynccontextmanager

from quire_contract import names
from quire_contract.kube import resources
from quire_contract.router_config import RouterConfig, encode_config
from quire_contract.router_settings import FaultSettings, RouterSettingsEntry
from quire_contract.router_tenants import PriceEntry
from quire_router.kube_source import KubernetesSource

NUM_TENANTS = 500


class Routed:
    """What a router was last told; its keeper."""

    def __init__(self):
        self.config = RouterConfig(models=[], endpoints=[])
        self.changed = asyncio.Event()

    def check(self, config, source):
        """Whatever decodes is right."""

    async def apply(self, config):
        self.config = config
        self.changed.set()

    def keys(self, tenant):
        return [key.id for one in self.config.tenants if one.id == tenant for key in one.keys]

    async def until(self, condition, timeout_s=120.0):
        """Seconds until a configuration fulfils it."""
        began_s = time.monotonic()
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()
        return time.monotonic() - began_s


@asynccontextmanager
async def router_of(cluster):
    routed = Routed()
    source = KubernetesSource(
        cluster.client,
        routed,
        release=cluster.platform.release,
        home=cluster.namespace,
        namespaces=[cluster.namespace],
        rng=random.Random(1),
    )
    task = asyncio.create_task(source.run())
    try:
        yield routed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def key(number):
    return {"id": f"key-{number}", "sha256": f"{number:064x}"}


async def test_a_key_that_is_revoked_is_soon_known_to_be_so(cluster):
    async with cluster.operator(kopf=True), router_of(cluster) as routed:
        await cluster.create(resources.TENANT, "acme", {"keys": [key(1), key(2)]})
        await routed.until(lambda: routed.keys(f"{cluster.namespace}/acme") == ["key-1", "key-2"])

        took_s = []
        for kept in ([key(1)], [key(1), key(3)], [key(3)], []):
            await cluster.client.merge_patch(resources.TENANT, cluster.namespace, "acme", {"spec": {"keys": kept}})
            expected = [one["id"] for one in kept]
            took_s.append(
                await routed.until(lambda expected=expected: routed.keys(f"{cluster.namespace}/acme") == expected)
            )

        async def is_warned():
            return "spec.keys is empty" in (await cluster.condition(resources.TENANT, "acme", "Accepted")).get(
                "message", ""
            )

        await cluster.until(is_warned)

    print(f"seconds from the change to the router: {', '.join(f'{one:.3f}' for one in took_s)}")


async def test_of_five_hundred_tenants_one_that_changes_rewrites_one_shard(cluster, counter):
    async with router_of(cluster) as routed:
        for i in range(NUM_TENANTS):
            await cluster.create(resources.TENANT, f"t{i}", {"keys": [key(4 * i + k) for k in range(4)]})
        async with cluster.operator(counter, kopf=True):
            await routed.until(lambda: len(routed.config.tenants) == NUM_TENANTS)
            # A router may hear of a shard before its writer hears that it is written; what comes after the shards is there.
            await cluster.until(lambda: cluster.get(resources.SECRET, names.TRUST_SECRET))
            before = shard_writes(counter)
            spec = {"spec": {"keys": [key(0), key(1), key(2)]}}
            await cluster.client.merge_patch(resources.TENANT, cluster.namespace, "t0", spec)
            took_s = await routed.until(lambda: len(routed.keys(f"{cluster.namespace}/t0")) == 3)

            async def is_seen():
                found = await cluster.get(resources.TENANT, "t0")
                return found.get("status", {}).get("observedGeneration") == 2

            async def is_counted():
                return shard_writes(counter) > before

            await cluster.until(is_seen)
            await cluster.until(is_counted)
            written = shard_writes(counter) - before

    print(f"{took_s:.3f} s with {NUM_TENANTS} tenants, {before} writes before, {written} for the change")
    assert sum(len(one.keys) for one in routed.config.tenants) == 4 * NUM_TENANTS - 1
    assert written == 1


def shard_writes(counter):
    return sum(kind == "ConfigMap" for _, kind, _ in counter.writes)


async def test_a_key_of_two_tenants_belongs_to_the_older_and_goes_on_to_the_younger(cluster):
    async with cluster.operator(), router_of(cluster) as routed:
        older = await cluster.create(resources.TENANT, "zz-older", {"keys": [key(1)]})
        await cluster.second_after(older)
        await cluster.create(resources.TENANT, "aa-younger", {"keys": [key(1), key(2)]})
        await routed.until(lambda: routed.keys(f"{cluster.namespace}/aa-younger") == ["key-2"])

        async def conflict():
            return await cluster.condition(resources.TENANT, "aa-younger", "Accepted")

        async def is_told():
            return (await conflict()).get("reason") == "KeyConflict"

        await cluster.until(is_told)
        message = (await conflict())["message"]
        await cluster.client.delete(resources.TENANT, cluster.namespace, "zz-older")
        await routed.until(lambda: routed.keys(f"{cluster.namespace}/aa-younger") == ["key-1", "key-2"])

        async def is_accepted():
            return (await conflict()).get("status") == "True"

        await cluster.until(is_accepted)

    assert f"{cluster.namespace}/zz-older" in message
    assert message.startswith("spec.keys[0].sha256")


async def test_routes_and_services_arrive_as_they_are_written_and_restart_nothing(cluster):
    async with cluster.operator(), router_of(cluster) as routed:
        await cluster.service()
        spec = {"model": "auto", "complexity": [{"model": "demo"}], "sticky": "User", "shadow": {"model": "demo"}}
        await cluster.create(resources.MODEL_ROUTE, "auto", spec)
        await routed.until(lambda: bool(routed.config.routes))

        async def deployments():
            items, _ = await cluster.client.list(resources.DEPLOYMENT, cluster.namespace)
            return [(item["metadata"]["name"], item["metadata"]["generation"]) for item in items]

        before = await cluster.until(deployments)
        change = {"routing": {"policy": "LeastLoad", "maxQueuedRequests": 7}, "price": {"input": "0.5"}}
        await cluster.client.merge_patch(resources.INFERENCE_SERVICE, cluster.namespace, "demo", {"spec": change})
        await routed.until(lambda: [service.policy for service in routed.config.services] == ["least_load"])

        async def is_seen():
            found = await cluster.get(resources.INFERENCE_SERVICE, "demo")
            return found["status"]["observedGeneration"] == found["metadata"]["generation"]

        await cluster.until(is_seen)
        after = await deployments()

    (route,), (service,), (model,) = routed.config.routes, routed.config.services, routed.config.models
    assert (route.model, route.complexity[0].model, route.sticky) == ("auto", "demo", "user")
    assert (service.max_queued_requests, model.price) == (7, PriceEntry(input="0.5"))
    assert after == before


async def test_the_charts_settings_are_a_shard_that_the_operator_leaves_alone(cluster):
    settings = RouterSettingsEntry(faults=FaultSettings(max_resumes=1))
    text = encode_config(RouterConfig(models=[], endpoints=[], settings=settings, require_tenant=True)).decode()
    labels = {"quire.dev/router-config": cluster.platform.release, "app.kubernetes.io/managed-by": "Helm"}
    body = {"metadata": {"name": "quire-router-settings", "labels": labels}, "data": {"router.json": text}}
    await cluster.client.create(resources.CONFIG_MAP, cluster.namespace, body)

    async with cluster.operator(), router_of(cluster) as routed:
        await cluster.service()
        await routed.until(lambda: bool(routed.config.models) and routed.config.settings is not None)
        await cluster.settled()
        left = await cluster.get(resources.CONFIG_MAP, "quire-router-settings")

    assert left is not None
    assert (routed.config.settings, routed.config.require_tenant) == (settings, True)


async def test_a_tenant_is_warned_of_a_model_until_somebody_serves_it(cluster):
    async with cluster.operator():
        await cluster.create(resources.TENANT, "acme", {"keys": [key(1)], "models": ["demo"]})

        async def message():
            return (await cluster.condition(resources.TENANT, "acme", "Accepted")).get("message", "")

        async def is_warned():
            return "'demo'" in await message()

        async def is_well():
            return "Warning" not in await message()

        await cluster.until(is_warned)
        await cluster.service()
        await cluster.until(is_well)

    assert (await message()) == "Routers enforce it: 1 key; 1 model."
