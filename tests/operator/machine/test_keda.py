"""KEDA on a real API server: a ScaledObject that is KEDA's to act on, a scaler that it asks, and one writer at any time."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from quire_contract.kube import resources
from quire_operator.api.validation import parse_service
from quire_operator.comparison import holds
from quire_operator.keda.endpoint import LeaderAddress
from quire_operator.keda.service import KedaSettings
from quire_operator.manifests.pod_autoscaler import autoscaler
from quire_operator.platform import KedaScaler
from quire_operator.scaling_objects import policy_for_others

from .demand_pages import demand_pages
from .keda_stand_in import FINALIZER, LABEL, KedaStandIn, install, uninstall

SERVICE, SCALED = resources.INFERENCE_SERVICE, resources.SCALED_OBJECT
SCALING = {
    "minReplicas": 0,
    "maxReplicas": 4,
    "demandPerReplica": 2,
    "cooldownSeconds": 1,
    "pollingIntervalSeconds": 1,
}


class Ports:
    """KedaSettings that tell where the scaler listens."""

    def __init__(self) -> None:
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.settings = KedaSettings(host="127.0.0.1", port=0, on_port=self.port.set_result, look_s=0.1)


@pytest.fixture
async def keda_cluster(cluster):
    """A cluster whose release serves KEDA."""
    cluster.platform = replace(cluster.platform, keda=KedaScaler(address="127.0.0.1:1"))
    return cluster


@pytest.fixture
async def installed(keda_cluster) -> AsyncIterator[None]:
    """KEDA's CRD."""
    await install(keda_cluster.client)
    yield
    await uninstall(keda_cluster.client)


async def replicas(cluster) -> int:
    return (await cluster.get(SERVICE, "demo"))["spec"].get("replicas", 1)


async def scaling(cluster) -> dict:
    return ((await cluster.get(SERVICE, "demo")).get("status") or {}).get("scaling") or {}


async def said(cluster) -> tuple:
    condition = await cluster.condition(SERVICE, "demo", "ScalingReady")
    return condition.get("status"), condition.get("reason")


@pytest.mark.usefixtures("installed")
async def test_keda_takes_a_service_from_zero_to_many_and_back(keda_cluster) -> None:
    cluster, ports = keda_cluster, Ports()
    name = f"{cluster.namespace}/demo"
    async with demand_pages(cluster.client, cluster.namespace) as routers, cluster.operator(keda=ports.settings):
        for router in routers:
            router.say(name)
        await cluster.service(scaling=SCALING, replicas=0)
        await cluster.until(lambda: cluster.get(SCALED, "demo"))
        keda = KedaStandIn(cluster.client, cluster.namespace, f"127.0.0.1:{await ports.port}")
        async with keda.running():

            async def is_ready():
                return await said(cluster) == ("True", "ScaledObjectReady")

            async def has(wanted: int) -> bool:
                return await replicas(cluster) == wanted

            await cluster.until(is_ready)
            assert keda.scalings == []

            async with keda.looks:
                routers[0].say(name, held=1)
                await cluster.until(lambda: has(1))
            routers[1].say(name, held=6)
            await cluster.until(lambda: has(4))
            for router in routers:
                router.say(name)
            await cluster.until(lambda: has(0))

        live, status = await cluster.get(SCALED, "demo"), await scaling(cluster)

    assert keda.scalings[0] == ("push", 1)
    assert keda.scalings[-1] == ("poll", 0)
    assert status["provider"] == "Keda"
    assert [owner["kind"] for owner in live["metadata"]["ownerReferences"]] == ["InferenceService"]
    assert live["metadata"]["finalizers"] == [FINALIZER]
    assert live["metadata"]["labels"][LABEL] == "demo"
    assert live["metadata"]["generation"] == 1  # it was written once, whatever KEDA wrote beside


@pytest.mark.usefixtures("installed")
async def test_what_one_router_does_not_tell_is_an_error_that_reaches_the_services_condition(keda_cluster) -> None:
    cluster, ports = keda_cluster, Ports()
    async with demand_pages(cluster.client, cluster.namespace) as routers, cluster.operator(keda=ports.settings):
        for router in routers:
            router.say(f"{cluster.namespace}/demo", running=1)
        routers[1].is_away = True
        await cluster.service(scaling=SCALING, replicas=2)
        await cluster.until(lambda: cluster.get(SCALED, "demo"))
        keda = KedaStandIn(cluster.client, cluster.namespace, f"127.0.0.1:{await ports.port}")
        async with keda.running():

            async def is_told():
                condition = await cluster.condition(SERVICE, "demo", "ScalingReady")
                return condition.get("reason") == "TriggerError" and "router-1" in condition["message"] and condition

            condition = await cluster.until(is_told)

    assert condition["status"] == "False"
    assert keda.scalings == []
    assert await replicas(cluster) == 2


async def test_a_keda_that_comes_takes_over_and_one_that_goes_leaves_the_operator_to_it_at_once(keda_cluster) -> None:
    cluster, ports = keda_cluster, Ports()
    name = f"{cluster.namespace}/demo"
    async with demand_pages(cluster.client, cluster.namespace) as routers, cluster.operator(keda=ports.settings):
        for router in routers:
            router.say(name)

        async def is_provided_by(provider: str) -> bool:
            return (await scaling(cluster)).get("provider") == provider

        await cluster.service(scaling=SCALING, replicas=0)
        await cluster.until(lambda: is_provided_by("BuiltIn"))

        await install(cluster.client)
        try:
            await cluster.until(lambda: cluster.get(SCALED, "demo"))
            await cluster.until(lambda: is_provided_by("Keda"))
        finally:
            await uninstall(cluster.client)
        await cluster.until(lambda: is_provided_by("BuiltIn"))
        routers[0].say(name, held=1)

        async def is_awake():
            return await replicas(cluster) == 1

        await cluster.until(is_awake)


@pytest.mark.usefixtures("installed")
async def test_another_provider_writes_only_when_kedas_object_is_gone(keda_cluster) -> None:
    cluster, ports = keda_cluster, Ports()
    name = f"{cluster.namespace}/demo"
    async with demand_pages(cluster.client, cluster.namespace) as routers, cluster.operator(keda=ports.settings):
        for router in routers:
            router.say(name)
        await cluster.service(scaling=SCALING, replicas=0)
        await cluster.until(lambda: cluster.get(SCALED, "demo"))
        keda = KedaStandIn(cluster.client, cluster.namespace, f"127.0.0.1:{await ports.port}")
        keda.lets_go = False
        async with keda.running():

            async def is_taken():
                return (await cluster.get(SCALED, "demo"))["metadata"].get("finalizers")

            await cluster.until(is_taken)
            patch = {"spec": {"scaling": {"provider": "BuiltIn"}}}
            await cluster.client.merge_patch(SERVICE, cluster.namespace, "demo", patch)

            async def is_switching():
                return await said(cluster) == ("False", "SwitchingProvider")

            await cluster.until(is_switching)

            async def is_deleted():
                return (await cluster.get(SCALED, "demo"))["metadata"].get("deletionTimestamp")

            await cluster.until(is_deleted)
            assert (await scaling(cluster))["provider"] == "Keda"
            keda.lets_go = True

            async def is_built_in():
                return (await scaling(cluster)).get("provider") == "BuiltIn"

            await cluster.until(is_built_in)
            assert await cluster.get(SCALED, "demo") is None


async def test_an_hpa_that_the_server_does_not_serve_is_named_with_the_fix(keda_cluster) -> None:
    cluster = keda_cluster
    if await cluster.client.serves(resources.HPA_V2):
        pytest.skip("this server serves autoscaling/v2")
    async with cluster.operator(keda=Ports().settings):
        await cluster.service(scaling={**SCALING, "provider": "Hpa"})

        async def is_told():
            return await said(cluster) == ("False", "HPANotServed")

        await cluster.until(is_told)

    condition = await cluster.condition(SERVICE, "demo", "ScalingReady")
    assert "use Kubernetes 1.23 or later, or set provider: BuiltIn" in condition["message"]


async def test_an_hpa_is_what_a_server_takes_and_is_found_as_it_was_written(keda_cluster) -> None:
    cluster = keda_cluster
    document = await cluster.service(scaling={**SCALING, "behavior": {"scaleDown": {"selectPolicy": "Disabled"}}})
    service = parse_service(document)
    manifest = autoscaler(service, policy_for_others(service, None, ()), 20)
    # An older server has the same fields under an older name.
    kind = resources.HPA_V2
    if not await cluster.client.serves(kind):
        kind = replace(kind, version="v2beta2")
        manifest = {**manifest, "apiVersion": kind.api_version}

    live = await cluster.client.create(kind, cluster.namespace, manifest)

    assert holds(live["spec"], manifest["spec"])
    assert live["spec"]["maxReplicas"] == 4


async def test_the_scalers_service_leads_to_the_operator_that_leads_now(keda_cluster) -> None:
    cluster = keda_cluster
    ports = [{"name": "grpc", "port": 9090, "targetPort": "grpc"}]
    await cluster.create(resources.SERVICE, "quire-scaler", {"ports": ports})
    served = await cluster.client.serves(resources.ENDPOINT_SLICE_V1)
    kind = resources.ENDPOINT_SLICE_V1 if served else resources.ENDPOINT_SLICE_V1BETA1

    found = []
    for pod, ip in (("operator-a", "10.1.1.1"), ("operator-b", "10.1.1.2")):
        told = Ports()
        leader = LeaderAddress(namespace=cluster.namespace, service="quire-scaler", pod=pod, ip=ip, port=0)
        async with cluster.operator(keda=replace(told.settings, leader=leader)):

            async def leads_here(ip: str = ip):
                slices, _ = await cluster.client.list(kind, cluster.namespace)
                (one,) = slices or [{}]
                return one.get("endpoints") and one["endpoints"][0]["addresses"] == [ip] and one

            found.append((await told.port, await cluster.until(leads_here)))

    for port, one in found:
        assert one["metadata"]["labels"]["kubernetes.io/service-name"] == "quire-scaler"
        assert [entry["port"] for entry in one["ports"]] == [port]
    assert found[0][1]["metadata"]["uid"] == found[1][1]["metadata"]["uid"]
    assert [one["endpoints"][0]["targetRef"]["name"] for _, one in found] == ["operator-a", "operator-b"]
