"""What the operator makes, changes and removes on a real API server."""

from dataclasses import replace

from quire_contract import names
from quire_contract.kube import resources
from quire_contract.router_config import decode_config
from quire_operator.platform import ModelCache

SERVICE = resources.INFERENCE_SERVICE


async def shard_of(cluster, index: int = 0):
    shard = await cluster.get(resources.CONFIG_MAP, f"quire-router-config-{index}")
    return shard and decode_config(shard["data"]["router.json"].encode())


async def deployments(cluster) -> list[dict]:
    items, _ = await cluster.client.list(resources.DEPLOYMENT, cluster.namespace)
    return items


async def test_a_service_gets_its_children_its_status_its_secret_and_its_place_in_the_routers_configuration(
    cluster,
) -> None:
    async with cluster.operator(kopf=True):
        service = await cluster.service(model={"uri": "pvc://models/llama", "aliases": ["other"]})

        async def is_reported():
            return await cluster.condition(SERVICE, "demo", "Ready")

        assert (await cluster.until(is_reported))["status"] == "False"
        objects = await cluster.settled()

        async def is_routed():
            shard = await shard_of(cluster)
            return shard and [model.name for model in shard.models] == ["demo", "other"]

        await cluster.until(is_routed)

    kinds = sorted(kind for kind, _ in objects)
    assert kinds.count("Deployment") == 1
    assert {"ControllerRevision", "NetworkPolicy", "PodDisruptionBudget", "Secret", "Service", "ServiceAccount"} <= set(
        kinds
    )
    for (kind, _), item in objects.items():
        if kind not in ("Secret", "ConfigMap", "InferenceService"):
            assert item["metadata"]["owners"] == [("InferenceService", "demo")]
    assert objects["Secret", "quire-trust"]["data"] == ["cache-salt", "curve.key", "curve.pub", "token"]
    after = await cluster.get(SERVICE, "demo")
    assert after["metadata"].get("finalizers") is None
    assert after["metadata"].get("annotations") == service["metadata"].get("annotations")
    assert "kopf" not in after["status"]


async def test_a_change_reaches_the_children_and_what_is_owned_but_not_wanted_goes(cluster) -> None:
    async with cluster.operator(kopf=True):
        service = await cluster.service()
        await cluster.until(lambda: deployments(cluster))
        owner = {
            "apiVersion": SERVICE.api_version,
            "kind": SERVICE.kind,
            "name": "demo",
            "uid": service["metadata"]["uid"],
        }
        stray = {
            "metadata": {
                "name": "stray",
                "labels": {names.LABEL_MANAGED_BY: "quire-operator"},
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {"ports": [{"port": 80}]},
        }
        await cluster.client.create(resources.SERVICE, cluster.namespace, stray)
        await cluster.client.merge_patch(SERVICE, cluster.namespace, "demo", {"spec": {"replicas": 3}})

        async def is_scaled():
            return [d["spec"]["replicas"] for d in await deployments(cluster)] == [3]

        async def is_pruned():
            return await cluster.get(resources.SERVICE, "stray") is None

        await cluster.until(is_scaled)
        await cluster.until(is_pruned)


async def test_a_second_operator_finds_everything_as_it_should_be_and_writes_nothing(cluster, counter) -> None:
    await cluster.service("one", resources={"requests": {"cpu": "1000m", "memory": "1024Mi"}})
    await cluster.service("two", replicas=2)
    async with cluster.operator():

        async def both_are_reported():
            conditions = [await cluster.condition(SERVICE, name, "Ready") for name in ("one", "two")]
            return all(condition.get("reason") == "Unschedulable" for condition in conditions)

        await cluster.until(both_are_reported)
        before = await cluster.settled()

    async with cluster.operator(counter):
        after = await cluster.settled()

    assert counter.writes == []
    assert after == before


async def test_what_others_change_is_put_right_and_what_others_add_is_left(cluster) -> None:
    async with cluster.operator():
        await cluster.service()
        (deployment,) = await cluster.until(lambda: deployments(cluster))
        name = deployment["metadata"]["name"]
        patch = {"metadata": {"labels": {"team": "a"}}, "spec": {"replicas": 9}}
        await cluster.client.merge_patch(resources.DEPLOYMENT, cluster.namespace, name, patch)

        async def is_right():
            live = await cluster.get(resources.DEPLOYMENT, name)
            return live["spec"]["replicas"] == 1 and live["metadata"]["generation"] >= 3 and live

        live = await cluster.until(is_right)

    assert live["metadata"]["labels"]["team"] == "a"


async def test_after_a_deletion_nothing_is_left_and_the_routers_are_told(cluster) -> None:
    async with cluster.operator(kopf=True):
        await cluster.service()

        async def is_routed():
            shard = await shard_of(cluster)
            return shard and shard.models

        await cluster.until(is_routed)
        await cluster.until(lambda: deployments(cluster))
        await cluster.client.delete(SERVICE, cluster.namespace, "demo")

        async def is_gone():
            return not (await shard_of(cluster)).models

        await cluster.until(is_gone)

        async def is_collected():
            return {kind for kind, _ in await cluster.objects()} == {"ConfigMap", "Secret"}

        await cluster.until(is_collected)


async def test_what_is_not_ours_is_never_taken_over(cluster) -> None:
    theirs = {"metadata": {"name": "demo-worker"}, "spec": {"ports": [{"port": 80}]}}
    await cluster.client.create(resources.SERVICE, cluster.namespace, theirs)
    async with cluster.operator():
        await cluster.service()

        async def is_told():
            condition = await cluster.condition(SERVICE, "demo", "Ready")
            return "is not Quire's" in condition.get("message", "")

        await cluster.until(is_told)
        await cluster.until(lambda: deployments(cluster))  # the others go on

    live = await cluster.get(resources.SERVICE, "demo-worker")
    assert live["spec"]["ports"][0]["port"] == 80
    assert "ownerReferences" not in live["metadata"]


async def test_what_the_server_refuses_shows_within_seconds_and_passes_when_it_is_allowed(cluster) -> None:
    quota = resources.ResourceKind(group="", version="v1", plural="resourcequotas", kind="ResourceQuota")
    await cluster.create(quota, "no-deployments", {"hard": {"count/deployments.apps": "0"}})
    async with cluster.operator():
        await cluster.service()

        async def is_told():
            condition = await cluster.condition(SERVICE, "demo", "Ready")
            return "quota" in condition.get("message", "").lower()

        await cluster.until(is_told)
        await cluster.client.delete(quota, cluster.namespace, "no-deployments")
        await cluster.until(lambda: deployments(cluster))


async def test_the_older_service_keeps_a_name_and_the_younger_gets_it_when_that_goes(cluster) -> None:
    older = await cluster.service("older", model={"uri": "pvc://models/llama", "name": "shared"})
    await cluster.second_after(older)
    await cluster.service("younger", model={"uri": "pvc://models/llama", "name": "shared"})
    async with cluster.operator():

        async def is_refused():
            condition = await cluster.condition(SERVICE, "younger", "Accepted")
            return condition.get("reason") == "NameConflict" and condition

        condition = await cluster.until(is_refused)
        assert "spec.model.name" in condition["message"]
        await cluster.client.delete(SERVICE, cluster.namespace, "older")

        async def is_accepted():
            return (await cluster.condition(SERVICE, "younger", "Accepted")).get("status") == "True"

        await cluster.until(is_accepted)

        async def is_routed():
            shard = await shard_of(cluster)
            return shard and [model.service for model in shard.models] == [f"{cluster.namespace}/younger"]

        await cluster.until(is_routed)


async def test_a_paused_service_is_left_alone_and_goes_on_being_served(cluster) -> None:
    async with cluster.operator():
        await cluster.service()
        await cluster.until(lambda: deployments(cluster))

        async def is_routed():
            shard = await shard_of(cluster)
            return shard and shard.models

        await cluster.until(is_routed)
        patch = {"metadata": {"annotations": {names.ANNOTATION_PAUSED: "true"}}, "spec": {"replicas": 5}}
        await cluster.client.merge_patch(SERVICE, cluster.namespace, "demo", patch)

        async def is_seen():
            document = await cluster.get(SERVICE, "demo")
            return document["status"].get("observedGeneration") == document["metadata"]["generation"]

        await cluster.until(is_seen)

    assert [d["spec"]["replicas"] for d in await deployments(cluster)] == [1]
    assert [model.name for model in (await shard_of(cluster)).models] == ["demo"]


async def test_routes_and_tenants_are_told_whether_they_count(cluster) -> None:
    async with cluster.operator():
        await cluster.service()
        await cluster.create(resources.MODEL_ROUTE, "good", {"model": "public", "targets": [{"model": "demo"}]})
        await cluster.create(resources.MODEL_ROUTE, "unknown", {"model": "x", "targets": [{"model": "nobody"}]})
        await cluster.create(resources.MODEL_ROUTE, "taken", {"model": "demo", "targets": [{"model": "y"}]})
        await cluster.create(resources.TENANT, "team", {})

        async def verdicts():
            found = {}
            for name in ("good", "unknown", "taken"):
                found[name] = (await cluster.condition(resources.MODEL_ROUTE, name, "Accepted")).get("reason")
            return found == {"good": "Accepted", "unknown": "UnknownModel", "taken": "NameConflict"}

        await cluster.until(verdicts)

        async def is_routed():
            shard = await shard_of(cluster)
            return shard and [route.model for route in shard.routes] == ["public"]

        await cluster.until(is_routed)
        unknown = await cluster.condition(resources.MODEL_ROUTE, "unknown", "Accepted")
        assert "spec.targets[0].model" in unknown["message"]
        assert "demo" in unknown["message"]

        async def tenant():
            return (await cluster.condition(resources.TENANT, "team", "Accepted")).get("status") == "True"

        await cluster.until(tenant)


async def test_a_spec_that_makes_no_sense_is_reported_and_stops_nobody(cluster) -> None:
    async with cluster.operator(kopf=True):
        await cluster.service("bad", parallelism={"tensor": 2})
        await cluster.service("good")

        async def is_refused():
            return (await cluster.condition(SERVICE, "bad", "Accepted")).get("status") == "False"

        await cluster.until(is_refused)
        await cluster.until(lambda: deployments(cluster))

    assert [d["metadata"]["labels"][names.LABEL_SERVICE] for d in await deployments(cluster)] == ["good"]


async def test_a_claim_for_models_is_made_if_it_is_missing_and_then_nobodys_to_change_or_remove(cluster) -> None:
    cluster.platform = replace(cluster.platform, model_cache=ModelCache(kind="PersistentVolumeClaim", size="3Gi"))
    async with cluster.operator():
        await cluster.service(model={"uri": "hf://org/model"})

        async def claim():
            return await cluster.get(resources.PVC, "quire-models")

        made = await cluster.until(claim)
        await cluster.until(lambda: deployments(cluster))
        await cluster.client.delete(SERVICE, cluster.namespace, "demo")

        async def is_collected():
            return {kind for kind, _ in await cluster.objects()} == {"ConfigMap", "Secret"}

        await cluster.until(is_collected)

    after = await claim()
    assert after["metadata"]["uid"] == made["metadata"]["uid"]
    assert "ownerReferences" not in after["metadata"]
    assert after["spec"]["resources"]["requests"]["storage"] == "3Gi"
