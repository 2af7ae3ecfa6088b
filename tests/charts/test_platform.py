"""The operator reads what the chart writes for it: flags and platform, with the operator's own defaults where values say nothing."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.alias_generators import to_camel

from quire_operator.config import OperatorConfig, parse_config, with_namespace
from quire_operator.platform import KedaScaler, ModelCache, Platform, SpotPool

from .chart import Chart, one
from .settings import EVERYTHING

# The chart makes the routers itself; the operator makes them nowhere on a cluster.
OF_THE_ROUTERS = {"routerImage", "routerReplicas", "routerResources", "routerDrainTimeoutS", "routerShutdownDelayS"}
SCRAPER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
ALL_GIVEN: dict[str, Any] = {
    "global": {"imageRegistry": "registry.example.com", "imagePullSecrets": ["pull", {"name": "other"}]},
    "fullnameOverride": "llms",
    "trustSecret": "trusted",
    "router": {"service": {"port": 8000}},
    "bindHost": "::",
    "worker": {
        "image": {"tag": "9", "pullPolicy": "Always"},
        "requests": {"cpu": 4, "memory": "8Gi"},
        "runAsUser": 1000,
        "maxConcurrentUpgrades": 0,
        "spot": {"labelKey": "example.com/spot", "labelValue": "true"},
    },
    "models": {
        "sources": ["hf"],
        "root": "/models",
        "huggingFaceEndpoint": "https://hub.example.com",
        "s3Endpoint": "https://s3.example.com",
        "fetchResources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": 0.5, "memory": "1Gi"}},
        "cache": {
            "kind": "HostPath",
            "hostPath": "/var/models",
            "claim": "shelf",
            "size": 7,
            "storageClass": "fast",
            "accessMode": "ReadWriteOnce",
            "maxSize": 8,
        },
    },
    "proxy": {"httpsProxy": "http://proxy:3128", "httpProxy": "http://proxy:3129", "noProxy": "example.com"},
    "privateCA": {"configMap": "our-ca"},
    "networkPolicy": {"enabled": False, "metricsFrom": [SCRAPER], "modelCIDRs": ["10.0.0.0/8"]},
    "keda": {
        "tlsSecret": "scaler-tls",
        "authentication": {"name": "scaler-clients", "kind": "TriggerAuthentication"},
        "prometheusAddress": "http://prometheus:9090",
    },
}
ALL_READ = Platform(
    release="llms",
    namespace="llm",
    worker_image="registry.example.com/quire-worker:9",
    worker_cuda_image="registry.example.com/quire-worker:0.1.0-cuda",
    image_pull_policy="Always",
    image_pull_secrets=("pull", "other"),
    worker_requests={"cpu": "4", "memory": "8Gi"},
    trust_secret="trusted",
    router_service_port=8000,
    model_sources=frozenset({"hf"}),
    model_cache=ModelCache(
        kind="HostPath",
        host_path="/var/models",
        claim="shelf",
        size="7",
        storage_class="fast",
        access_mode="ReadWriteOnce",
        max_size="8",
    ),
    hf_endpoint="https://hub.example.com",
    s3_endpoint="https://s3.example.com",
    fetch_resources={"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "0.5", "memory": "1Gi"}},
    proxy_env={"HTTPS_PROXY": "http://proxy:3128", "HTTP_PROXY": "http://proxy:3129", "NO_PROXY": "example.com"},
    ca_config_map="our-ca",
    network_policies=False,
    metrics_from=(SCRAPER,),
    model_cidrs=("10.0.0.0/8",),
    max_concurrent_upgrades=0,
    model_root="/models",
    bind_host="::",
    run_as_user=1000,
    spot=SpotPool(label_key="example.com/spot", label_value="true"),
    keda=KedaScaler(
        address="llms-scaler.llm.svc:9090",
        tls=True,
        authentication="scaler-clients",
        authentication_kind="TriggerAuthentication",
        prometheus_address="http://prometheus:9090",
    ),
)


def camel_fields(kind: type[Any]) -> set[str]:
    return {to_camel(field.name) for field in dataclasses.fields(kind)}


def written(chart: Chart, values: dict[str, Any] | None = None, release: str = "quire") -> str:
    """The platform file."""
    return str(one(chart.render(values), "ConfigMap", f"{release}-operator")["data"]["platform.yaml"])


def read(chart: Chart, folder: Path, values: dict[str, Any] | None = None, release: str = "quire") -> OperatorConfig:
    """The operator's settings from the container's arguments and the mounted file."""
    (folder / "platform.yaml").write_text(written(chart, values, release))
    deployment = one(chart.render(values), "Deployment", f"{release}-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "platform")
    arguments = [argument.replace(mount["mountPath"], str(folder)) for argument in container["args"]]
    return parse_config(arguments, identity="test")


def test_without_values_the_operator_has_its_own_defaults(chart: Chart, tmp_path: Path) -> None:
    expected = Platform(namespace="llm", keda=KedaScaler(address="quire-scaler.llm.svc:9090"))

    assert read(chart, tmp_path).platform == expected


def test_names_of_digits_stay_text(chart: Chart) -> None:
    text = chart.render_text({**EVERYTHING, "watchNamespaces": ["2025"]}, name="123", namespace="2024")

    assert 'namespace: "2024"' in text
    assert re.findall(r".*[:,\[-] (?:123|2024|2025)(?:[\s,}\]].*)", text) == []


def test_every_value_reaches_its_field(chart: Chart, tmp_path: Path) -> None:
    assert read(chart, tmp_path, ALL_GIVEN, "llms").platform == ALL_READ


def test_no_field_is_left_to_its_default(chart: Chart) -> None:
    keys = yaml.safe_load(written(chart, ALL_GIVEN, "llms"))

    assert keys.keys() == camel_fields(Platform) - OF_THE_ROUTERS
    assert keys["modelCache"].keys() == camel_fields(ModelCache)
    assert keys["keda"].keys() == camel_fields(KedaScaler)


def test_the_operator_finds_the_routers_by_the_prefix_of_the_releases_objects(chart: Chart, tmp_path: Path) -> None:
    values = {"fullnameOverride": "llms"}
    objects, platform = chart.render(values), read(chart, tmp_path, values, "llms").platform

    for kind in ("Deployment", "Service", "ServiceAccount"):
        assert one(objects, kind, platform.router_name)


@pytest.mark.parametrize(
    ("values", "watched"),
    [({}, ("llm",)), ({"watchNamespaces": ["team-a", "llm"]}, ("llm", "team-a")), ({"clusterWide": True}, ())],
)
def test_the_operator_watches_what_its_roles_are_for(
    chart: Chart, tmp_path: Path, values: dict[str, Any], watched: tuple[str, ...]
) -> None:
    config = read(chart, tmp_path, values)

    assert with_namespace(config, "llm")[1] == watched


def test_ports_lease_and_log_level_are_those_of_the_pod_and_the_roles(chart: Chart, tmp_path: Path) -> None:
    values = {"operator": {"logLevel": "debug", "extraArgs": ["--log-json"]}}
    objects, config = chart.render(values), read(chart, tmp_path, values)

    (container,) = one(objects, "Deployment", "quire-operator")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"health": config.health_port, "metrics": config.metrics_port, "grpc": config.scaler_port}
    assert one(objects, "Lease", config.lease_name)["metadata"]["namespace"] == "llm"
    assert (config.log_level, config.log_json) == ("debug", True)
