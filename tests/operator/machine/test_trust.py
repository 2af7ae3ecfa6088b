"""The Secret by which the parts of a release know each other, on a real API server."""

import base64

import pytest

from quire_contract.kube import resources
from quire_contract.kube.client import KubeError
from quire_operator.platform import Platform
from quire_operator.trust_secret import TrustSecrets

NAME = "quire-trust"


def owner_of(document: dict) -> dict:
    meta = document["metadata"]
    return {"apiVersion": "v1", "kind": "ConfigMap", "name": meta["name"], "uid": meta["uid"]}


async def config_map(cluster, name: str) -> dict:
    return await cluster.client.create(resources.CONFIG_MAP, cluster.namespace, {"metadata": {"name": name}})


def secrets_of(cluster, release) -> TrustSecrets:
    return TrustSecrets(cluster.client, Platform(namespace=release.namespace))


async def test_it_is_made_once_and_copied_with_the_owners_of_each_place(clusters) -> None:
    release, team = await clusters(), await clusters()
    trust = secrets_of(release, release)
    router, service = await config_map(release, "router"), await config_map(team, "service")

    assert await trust.ensure(release.namespace, []) is None
    assert await trust.ensure(release.namespace, [owner_of(router)]) is None
    assert await trust.ensure(team.namespace, [owner_of(service)]) is None

    own, copy = await release.get(resources.SECRET, NAME), await team.get(resources.SECRET, NAME)
    assert own["data"] == copy["data"]
    assert own["metadata"]["ownerReferences"][0]["uid"] == router["metadata"]["uid"]
    assert copy["metadata"]["ownerReferences"][0]["uid"] == service["metadata"]["uid"]
    assert len(base64.b64decode(own["data"]["cache-salt"])) == 64
    assert trust.token() == base64.b64decode(own["data"]["token"]).decode()


async def test_another_operator_finds_it_and_keeps_it(clusters) -> None:
    release = await clusters()
    await secrets_of(release, release).ensure(release.namespace, [])
    before = await release.get(resources.SECRET, NAME)

    await secrets_of(release, release).ensure(release.namespace, [])

    assert await release.get(resources.SECRET, NAME) == before


async def test_what_another_put_there_is_reported_and_left(clusters) -> None:
    release = await clusters()
    body = {"metadata": {"name": NAME}, "stringData": {"token": "too short"}}
    await release.client.create(resources.SECRET, release.namespace, body)
    before = await release.get(resources.SECRET, NAME)

    problem = await secrets_of(release, release).ensure(release.namespace, [])

    assert problem.path == f"Secret/{NAME}"
    assert "delete it" in problem.message
    assert "too short" not in problem.message
    assert await release.get(resources.SECRET, NAME) == before


async def test_a_copy_waits_for_the_releases_own(clusters) -> None:
    release, team = await clusters(), await clusters()

    with pytest.raises(KubeError, match="not there yet"):
        await secrets_of(release, release).ensure(team.namespace, [])
