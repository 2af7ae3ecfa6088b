"""What belongs to a release as a whole: its trust Secret outlives it, and a service's address has its routers' port."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from quire_operator.platform import Platform
from quire_operator.release import Release
from tests.operator.decide_world import World

SERVICE = {"metadata": {"name": "llama", "namespace": "team", "uid": "u-1"}}
ROUTER = {"name": "quire-router", "uid": "u-router"}


class Trust:
    """Remembers whom a Secret was given to."""

    def __init__(self) -> None:
        self.owners: dict[str, list[str]] = {}

    async def ensure(self, namespace: str, owners: Sequence[Mapping[str, Any]]) -> None:
        self.owners[namespace] = [owner["uid"] for owner in owners]


class Cluster:
    """Routers that run, and one service in another namespace."""

    async def write(self, entries: object, owner: Mapping[str, Any] | None) -> None:
        assert owner == ROUTER

    async def reference(self) -> Mapping[str, Any]:
        return ROUTER

    def services_of(self, namespace: str) -> list[Mapping[str, Any]]:
        return [SERVICE] if namespace == "team" else []


async def test_the_trust_secret_outlives_the_routers_and_its_copy_goes_with_the_services() -> None:
    cluster, trust = Cluster(), Trust()
    platform = Platform(namespace="quire")
    release = Release(cache=cluster, shards=cluster, trust=trust, owner=cluster, platform=platform)  # type: ignore[arg-type]

    await release.write([])
    await release.ensure_trust("team")

    assert trust.owners == {"quire": [], "team": ["u-1"]}


@pytest.mark.parametrize(
    ("port", "url"), [(80, "http://quire-router.llm.svc/v1"), (8000, "http://quire-router.llm.svc:8000/v1")]
)
def test_the_address_in_the_status_has_the_port_of_the_routers_service(
    document: Callable[..., dict[str, Any]], port: int, url: str
) -> None:
    made = document()
    made["metadata"] |= {"namespace": "llm", "uid": "u-1", "generation": 1}
    world = World(document=made, platform=Platform(namespace="llm", router_service_port=port))

    world.look()

    assert world.document["status"]["url"] == url
