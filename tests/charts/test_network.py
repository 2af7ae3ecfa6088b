"""Who reaches whom: policies, and the ways in."""

from typing import Any

import pytest

from .chart import Chart, Manifest, of_kind, one
from .leaves import overlaid
from .settings import EVERYTHING, EXTERNAL_REDIS

DNS = {(53, "UDP"), (53, "TCP")}
API = {(443, "TCP"), (6443, "TCP")}


def rules(policy: Manifest, direction: str) -> list[tuple[set[tuple[int, str]], list[Any]]]:
    """Every rule as its ports and its peers; no peers: everybody."""
    peers = "to" if direction == "egress" else "from"
    return [
        ({(port["port"], port["protocol"]) for port in rule["ports"]}, rule.get(peers, []))
        for rule in policy["spec"][direction]
    ]


def role(name: str) -> Manifest:
    return {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "quire", "quire.dev/role": name}}}


def namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def workers(*namespaces: str) -> Manifest:
    names = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(namespaces)}
    selector = {"matchExpressions": [names]} if namespaces else {}
    return {"namespaceSelector": selector, "podSelector": {"matchLabels": {"quire.dev/role": "worker"}}}


def test_a_policy_selects_the_pods_of_its_component_both_ways(chart: Chart) -> None:
    policies = of_kind(chart.render(EVERYTHING), "NetworkPolicy")

    assert policies.keys() == {"quire-operator", "quire-router", "quire-redis"}
    for name, policy in policies.items():
        assert {"podSelector": policy["spec"]["podSelector"]} == role(name.removeprefix("quire-"))
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_routers_reach_workers_names_and_the_api_server_only(chart: Chart) -> None:
    policy = one(chart.render({"watchNamespaces": ["team-a"]}), "NetworkPolicy", "quire-router")

    assert rules(policy, "egress") == [
        (DNS, []),
        (API, []),
        ({(8000, "TCP"), (5557, "TCP"), (5558, "TCP")}, [workers("llm", "team-a")]),
    ]
    assert rules(policy, "ingress") == [({(8080, "TCP")}, [])]


def test_for_every_namespace_workers_are_reached_in_all(chart: Chart) -> None:
    policy = one(chart.render({"clusterWide": True}), "NetworkPolicy", "quire-router")

    assert rules(policy, "egress")[-1][1] == [workers()]


def test_the_operator_reaches_routers_and_fetchers_and_only_keda_reaches_it(chart: Chart) -> None:
    policy = one(chart.render(), "NetworkPolicy", "quire-operator")

    assert rules(policy, "egress") == [
        (DNS, []),
        (API, []),
        ({(8080, "TCP")}, [role("router")]),
        ({(8000, "TCP"), (8001, "TCP")}, [workers("llm")]),
    ]
    assert rules(policy, "ingress") == [({(9091, "TCP")}, [namespace("keda")])]


def test_scrapers_come_in_where_they_are_named(chart: Chart) -> None:
    scraper = namespace("monitoring")
    client = {"podSelector": {"matchLabels": {"app": "chat"}}}
    values = {"networkPolicy": {"metricsFrom": [scraper], "clientsFrom": [client], "apiServerCIDRs": ["10.0.0.1/32"]}}

    objects = chart.render(values)

    assert rules(one(objects, "NetworkPolicy", "quire-operator"), "ingress") == [
        ({(9090, "TCP")}, [scraper]),
        ({(9091, "TCP")}, [namespace("keda")]),
    ]
    router = one(objects, "NetworkPolicy", "quire-router")
    assert rules(router, "ingress") == [({(8080, "TCP")}, [client, scraper, role("operator"), role("test")])]
    assert (API, [{"ipBlock": {"cidr": "10.0.0.1/32"}}]) in rules(router, "egress")


def test_redis_is_reached_by_routers_only_and_reaches_nothing(chart: Chart) -> None:
    objects = chart.render({"redis": {"mode": "bundled"}})
    policy = one(objects, "NetworkPolicy", "quire-redis")

    assert rules(policy, "ingress") == [({(6379, "TCP")}, [role("router")])]
    assert policy["spec"]["egress"] == []
    assert ({(6379, "TCP")}, [role("redis")]) in rules(one(objects, "NetworkPolicy", "quire-router"), "egress")


@pytest.mark.parametrize("values", [{"networkPolicy": {"enabled": False}}])
def test_without_policies_there_are_none(chart: Chart, values: dict[str, Any]) -> None:
    assert of_kind(chart.render(overlaid(EVERYTHING, values)), "NetworkPolicy") == {}


def test_the_ingress_passes_streams_on_unbuffered(chart: Chart) -> None:
    values = {
        "router": {"ingress": {"enabled": True, "className": "nginx", "hosts": ["a.example.com", "b.example.com"]}}
    }

    ingress = one(chart.render(values), "Ingress", "quire-router")

    prefix = "nginx.ingress.kubernetes.io/"
    told = {key.removeprefix(prefix): value for key, value in ingress["metadata"]["annotations"].items()}
    assert (told["proxy-buffering"], told["proxy-request-buffering"], told["proxy-http-version"]) == (
        "off",
        "off",
        "1.1",
    )
    assert int(told["proxy-read-timeout"]) >= 1800
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["a.example.com", "b.example.com"]
    backends = [path["backend"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    assert backends == [{"service": {"name": "quire-router", "port": {"name": "http"}}}] * 2


def test_an_ingress_without_hosts_takes_every_host(chart: Chart) -> None:
    (rule,) = one(chart.render({"router": {"ingress": {"enabled": True}}}), "Ingress", "quire-router")["spec"]["rules"]

    assert "host" not in rule


def test_only_what_clients_need_is_reached_from_outside(chart: Chart) -> None:
    values = {
        "router": {"ingress": {"enabled": True}, "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]}}
    }

    objects = chart.render(values)

    (rule,) = one(objects, "Ingress", "quire-router")["spec"]["rules"]
    assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [("/v1", "Prefix")]
    (rule,) = one(objects, "HTTPRoute", "quire-router")["spec"]["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]


def test_the_http_route_has_no_time_limit(chart: Chart) -> None:
    values = {
        "router": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]}, "service": {"port": 8000}}
    }

    route = one(chart.render(values), "HTTPRoute", "quire-router")

    (rule,) = route["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert rule["backendRefs"] == [{"name": "quire-router", "port": 8000}]
    assert route["spec"]["parentRefs"] == [{"name": "gateway"}]


def test_a_gateway_that_knows_no_timeouts_is_not_told_of_any(chart: Chart) -> None:
    timeouts = {"request": None, "backendRequest": None}
    values = {"router": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "timeouts": timeouts}}}

    (rule,) = one(chart.render(values), "HTTPRoute", "quire-router")["spec"]["rules"]

    assert "timeouts" not in rule


@pytest.mark.parametrize(("version", "policy"), [("1.29", "AlwaysAllow"), ("1.26", None)])
def test_a_pod_that_is_not_ready_does_not_keep_its_node_from_being_drained(
    chart: Chart, version: str, policy: str | None
) -> None:
    objects = chart.render({"allowUnsupportedKubernetes": True}, kube_version=version)

    budgets = of_kind(objects, "PodDisruptionBudget")

    assert budgets.keys() == {"quire-operator", "quire-router"}
    assert {budget["spec"].get("unhealthyPodEvictionPolicy") for budget in budgets.values()} == {policy}


@pytest.mark.parametrize("values", [EVERYTHING, EXTERNAL_REDIS])
def test_services_and_budgets_select_pods_that_exist(chart: Chart, values: dict[str, Any]) -> None:
    objects = chart.render(values)
    pods = [
        item["spec"]["template"]["metadata"]["labels"]
        for item in objects
        if item["kind"] in {"Deployment", "StatefulSet"}
    ]
    services = of_kind(objects, "Service")
    assert "selector" not in services.pop("quire-scaler")["spec"]  # the leading operator leads it
    selectors = [item["spec"]["selector"] for item in services.values()]
    selectors += [item["spec"]["selector"]["matchLabels"] for item in of_kind(objects, "PodDisruptionBudget").values()]

    for selector in selectors:
        assert sum(selector.items() <= labels.items() for labels in pods) == 1, selector
