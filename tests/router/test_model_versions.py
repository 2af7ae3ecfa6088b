"""Which versions of a model are the current ones, as workers and revisions come and go."""

import pytest

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, ServiceEntry
from quire_router.endpoint_pool import EndpointPool
from quire_router.model_versions import ModelVersions
from quire_router.revision_stats import RevisionStats


class Fleet:
    """A model's workers by revision, applied like a configuration."""

    def __init__(self):
        self.pool = EndpointPool(RevisionStats(boot="b"))
        self.versions = ModelVersions(self.pool)

    def apply(self, *revisions, weights=None):
        entries = [
            EndpointEntry(id=f"{r}-{i}", url="http://127.0.0.1:1", models=["m"], service="ns/m", revision=r)
            for i, r in enumerate(revisions)
        ]
        services = [ServiceEntry(id="ns/m", weights=weights)] if weights else []
        config = RouterConfig(models=[ModelEntry(name="m", service="ns/m")], endpoints=entries, services=services)
        self.pool.apply(config)
        self.versions.follow(config)

    def current(self):
        return {version.revision for version in self.versions.current("m")}


@pytest.fixture
def fleet():
    return Fleet()


def test_each_revision_with_a_share_is_current(fleet):
    fleet.apply("r1", "r2", "r3", weights={"r1": 90, "r2": 10})

    assert fleet.current() == {"r1", "r2"}


def test_a_canary_that_was_rolled_back_is_not(fleet):
    fleet.apply("r1", "r2", weights={"r1": 90, "r2": 10})

    fleet.apply("r1", "r2", weights={"r1": 100, "r2": 0})

    assert fleet.current() == {"r1"}


def test_a_model_that_sleeps_keeps_what_it_ran_last(fleet):
    fleet.apply("r1")
    fleet.apply("r2")

    fleet.apply()

    assert fleet.current() == {"r2"}


def test_a_bundle_is_part_of_the_version(fleet):
    fleet.apply("r1")
    before = fleet.versions.of_endpoint("r1-0")

    fleet.pool.get("r1-0").digest = "d"

    assert fleet.versions.of_endpoint("r1-0") != before
    assert fleet.versions.current("m") == {fleet.versions.of_endpoint("r1-0")}


def test_who_is_gone_runs_nothing(fleet):
    assert fleet.versions.of_endpoint("r1-0") is None
    assert fleet.versions.of_endpoint(None) is None
    assert fleet.versions.current("m") == frozenset()
