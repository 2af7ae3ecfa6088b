"""The bundled Redis, and what Prometheus and Grafana are given."""

import base64
import json

import pytest
import yaml

from .chart import Chart, of_kind, one
from .leaves import overlaid
from .settings import EVERYTHING, EXTERNAL_REDIS

BUNDLED = {"redis": {"mode": "bundled"}}


def test_by_default_there_is_neither_a_redis_nor_a_secret(chart: Chart) -> None:
    kinds = {item["kind"] for item in chart.render()}

    assert not {"Secret", "StatefulSet"} & kinds


def test_the_only_secrets_of_the_chart_are_the_password_and_the_token_that_it_makes(chart: Chart) -> None:
    secrets = of_kind(chart.render(overlaid(EVERYTHING, BUNDLED)), "Secret")

    assert secrets.keys() == {"quire-redis", "quire-router-admin"}
    password = base64.b64decode(secrets["quire-redis"]["data"]["password"]).decode()
    assert password.isalnum()
    assert len(password) == 40


def test_a_secret_of_ones_own_is_used_instead(chart: Chart) -> None:
    values = {"redis": {"mode": "bundled", "auth": {"existingSecret": "mine", "key": "pw"}}}
    objects = chart.render(values)

    assert of_kind(objects, "Secret") == {}
    reference = {"secretKeyRef": {"name": "mine", "key": "pw"}}
    (redis,) = one(objects, "StatefulSet", "quire-redis")["spec"]["template"]["spec"]["containers"]
    (router,) = one(objects, "Deployment", "quire-router")["spec"]["template"]["spec"]["containers"]
    assert {"name": "REDISCLI_AUTH", "valueFrom": reference} in redis["env"]
    assert {"name": "QUIRE_REDIS_PASSWORD", "valueFrom": reference} in router["env"]


def test_redis_keeps_an_append_only_file_on_a_volume(chart: Chart) -> None:
    objects = chart.render(BUNDLED)
    config = one(objects, "ConfigMap", "quire-redis")["data"]["redis.conf"].splitlines()
    (claim,) = one(objects, "StatefulSet", "quire-redis")["spec"]["volumeClaimTemplates"]

    assert {"appendonly yes", "dir /data", "maxmemory-policy noeviction"} <= set(config)
    assert not any("pass" in line for line in config)
    assert claim["spec"]["resources"] == {"requests": {"storage": "1Gi"}}
    # Immutable in a StatefulSet: with a version in it no upgrade would pass.
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & claim["metadata"]["labels"].keys()


def test_without_persistence_redis_has_no_claim(chart: Chart) -> None:
    objects = chart.render({"redis": {"mode": "bundled", "persistence": {"enabled": False}}})
    spec = one(objects, "StatefulSet", "quire-redis")["spec"]

    assert "volumeClaimTemplates" not in spec
    assert {"name": "data", "emptyDir": {}} in spec["template"]["spec"]["volumes"]


def test_routers_get_the_url_after_the_password_that_it_holds(chart: Chart) -> None:
    (router,) = one(chart.render(BUNDLED), "Deployment", "quire-router")["spec"]["template"]["spec"]["containers"]
    names = [variable["name"] for variable in router["env"]]
    url = router["env"][names.index("QUIRE_REDIS_URL")]

    assert names.index("QUIRE_REDIS_PASSWORD") < names.index("QUIRE_REDIS_URL")
    assert url["value"] == "redis://:$(QUIRE_REDIS_PASSWORD)@quire-redis:6379/0"


def test_an_external_redis_is_a_url_in_a_secret(chart: Chart) -> None:
    objects = chart.render(EXTERNAL_REDIS)
    (router,) = one(objects, "Deployment", "quire-router")["spec"]["template"]["spec"]["containers"]

    assert of_kind(objects, "StatefulSet") == {}
    reference = {"secretKeyRef": {"name": "redis-url", "key": "url"}}
    assert {"name": "QUIRE_REDIS_URL", "valueFrom": reference} in router["env"]


def test_dashboards_are_config_maps_that_grafanas_sidecar_finds(chart: Chart) -> None:
    files = {path.name: json.loads(path.read_text()) for path in (chart.folder / "dashboards").glob("*.json")}

    found = {
        name: json.loads(text)
        for item in of_kind(chart.render({"metrics": {"dashboards": {"enabled": True}}}), "ConfigMap").values()
        if item["metadata"]["labels"].get("grafana_dashboard") == "1"
        for name, text in item["data"].items()
    }

    assert files
    assert found == files


def test_rules_reach_prometheus_as_they_are_in_their_files(chart: Chart) -> None:
    files = [yaml.safe_load(path.read_text()) for path in sorted((chart.folder / "rules").glob("*.yaml"))]

    values = {"metrics": {"rules": {"enabled": True, "labels": {"release": "prometheus"}}}}
    found = of_kind(chart.render(values), "PrometheusRule")

    assert files
    assert [found[name]["spec"] for name in sorted(found)] == files
    assert {rule["metadata"]["labels"]["release"] for rule in found.values()} == {"prometheus"}


@pytest.mark.parametrize("wide", [False, True])
def test_monitors_scrape_every_component(chart: Chart, wide: bool) -> None:
    objects = chart.render({**EVERYTHING, "clusterWide": wide})
    services = of_kind(objects, "Service")

    for name, monitor in of_kind(objects, "ServiceMonitor").items():
        (endpoint,) = monitor["spec"]["endpoints"]
        ports = {port["name"] for port in services[name]["spec"]["ports"]}
        assert monitor["spec"]["selector"]["matchLabels"].items() <= services[name]["metadata"]["labels"].items()
        assert (endpoint["port"] in ports, endpoint["path"]) == (True, "/metrics")
        assert endpoint["relabelings"] == [{"action": "labeldrop", "regex": "service"}], "or ours is exported_service"
    assert of_kind(objects, "ServiceMonitor").keys() == {"quire-operator", "quire-router"}
    workers = one(objects, "PodMonitor", "quire-worker")["spec"]
    assert workers["selector"] == {"matchLabels": {"quire.dev/role": "worker"}}
    assert workers["namespaceSelector"] == ({"any": True} if wide else {"matchNames": ["llm", "team-a"]})
    assert [endpoint["port"] for endpoint in workers["podMetricsEndpoints"]] == ["http"]
