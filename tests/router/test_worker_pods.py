"""Pods and shards become the configuration: addresses, names, and pods that must not get anything."""

import json

import pytest

from quire_contract.router_config import ModelEntry, RouterConfig
from quire_router.worker_pods import desired_config, read_pod

SHARD = RouterConfig(
    models=[
        ModelEntry(name="demo", service="home/demo"),
        ModelEntry(name="demo-alias", service="home/demo"),
        ModelEntry(name="other", service="away/other"),
    ],
    endpoints=[],
)


def pod(name="demo-1", namespace="home", service="demo", served=("demo",), address="10.0.0.1", **changes):
    """A pod as the API server gives it; `changes` replace whole parts of metadata or status."""
    meta = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{name}",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"quire.dev/service": service, "quire.dev/role": "worker", "quire.dev/revision": "r1"},
        "annotations": {"quire.dev/served-names": json.dumps(list(served))},
    }
    status = {"phase": "Running", "podIP": address}
    for key, value in changes.items():
        (status if key in ("phase", "podIP") else meta)[key] = value
    return {"metadata": meta, "spec": {}, "status": status}


def endpoints_of(*pods, shard=SHARD):
    return desired_config([shard], [read_pod(document) for document in pods], "home").endpoints


def test_a_pod_becomes_an_endpoint_with_its_addresses_service_and_revision():
    (endpoint,) = endpoints_of(pod())

    assert (endpoint.id, endpoint.pod_name, endpoint.url) == ("demo-1", "demo-1", "http://10.0.0.1:8000")
    assert (endpoint.events, endpoint.replay) == ("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5558")
    assert (endpoint.models, endpoint.service, endpoint.revision) == (["demo"], "home/demo", "r1")


def test_an_ipv6_address_gets_its_brackets():
    (endpoint,) = endpoints_of(pod(address="fd00::1"))

    assert (endpoint.url, endpoint.events) == ("http://[fd00::1]:8000", "tcp://[fd00::1]:5557")


def test_a_pod_serves_what_it_says_and_its_service_was_given():
    (endpoint,) = endpoints_of(pod(served=("demo", "stolen", "other", "demo-alias")))

    assert endpoint.models == ["demo", "demo-alias"]


def test_a_service_of_the_same_name_in_another_namespace_gives_no_right_to_the_name():
    assert endpoints_of(pod(namespace="away", service="demo", served=("demo",))) == []


def test_equal_pod_names_in_two_namespaces_are_two_endpoints_with_their_own_topics():
    here, there = pod(), pod(namespace="away", service="other", served=("other",), address="10.0.0.2")

    endpoints = endpoints_of(here, there)

    assert [(e.id, e.pod_name, e.models) for e in endpoints] == [
        ("away/demo-1", "demo-1", ["other"]),
        ("demo-1", "demo-1", ["demo"]),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"podIP": ""},
        {"podIP": None},
        {"deletionTimestamp": "2026-01-01T00:00:10Z"},
        {"phase": "Failed"},
        {"phase": "Succeeded"},
        {"annotations": {}},
        {"annotations": None},
        {"annotations": {"quire.dev/served-names": "not json"}},
        {"annotations": {"quire.dev/served-names": "{}"}},
        {"labels": {"quire.dev/revision": "r1"}},
    ],
    ids=str,
)
def test_a_pod_that_cannot_serve_is_left_out(changes):
    assert endpoints_of(pod(**changes)) == []


def test_a_document_with_nothing_in_it_is_no_error():
    assert endpoints_of({}, {"metadata": None, "status": None}) == []


def test_an_address_that_was_reused_belongs_to_the_younger_pod():
    old = pod(name="demo-old")
    new = pod(name="demo-new", creationTimestamp="2026-01-01T00:01:00Z")

    assert [e.id for e in endpoints_of(old, new)] == ["demo-new"]
    assert [e.id for e in endpoints_of(new, old)] == ["demo-new"]


def test_the_order_of_news_changes_nothing():
    pods = [pod(name=f"demo-{i}", address=f"10.0.0.{i}") for i in range(1, 6)]

    assert endpoints_of(*pods) == endpoints_of(*reversed(pods))
