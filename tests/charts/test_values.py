"""Every value of the chart does something, and nothing else is taken."""

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .chart import Chart, ChartRefusedError, of_kind
from .leaves import Path, at, leaves, nested, overlaid
from .settings import EVERYTHING, EXTERNAL_REDIS

HOST_PATH = {"models": {"cache": {"kind": "HostPath", "hostPath": "/var/models"}}}
FIXED_REPLICAS = {"router": {"autoscaling": {"enabled": False}}}
# What a flipped value must look like where one more, another letter or the contrary would not do.
FLIPPED: dict[str, Any] = {
    "global.imagePullSecrets": ["pull"],
    "bindHost": "::",
    "watchNamespaces": ["team-b"],
    "models.sources": ["hf"],
    "models.cache.kind": "PersistentVolumeClaim",
    "models.cache.size": "7Gi",
    "models.cache.accessMode": "ReadWriteOnce",
    "models.s3Endpoint": "https://s3.example.com",
    "worker.requests.cpu": "7",
    "worker.requests.memory": "7Gi",
    "router.service.type": "LoadBalancer",
    "router.settings": {"faults": {"max_resumes": 1}},
    "router.admin.clientsFrom": [{"podSelector": {}}],
    "router.autoscaling.behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
    "router.ingress.hosts": ["llm.example.com"],
    "router.ingress.tls": [{"secretName": "tls"}],
    "router.httpRoute.parentRefs": [{"name": "other"}],
    "router.httpRoute.hostnames": ["llm.example.com"],
    "router.httpRoute.timeouts.request": "9s",
    "router.httpRoute.timeouts.backendRequest": "9s",
    "redis.mode": "none",
    "redis.maxMemory": "64mb",
    "redis.persistence.size": "7Gi",
    "redis.persistence.whenDeleted": "Delete",
    "keda.authentication.kind": "TriggerAuthentication",
    "networkPolicy.clientsFrom": [{"podSelector": {}}],
    "networkPolicy.metricsFrom": [{"podSelector": {}}],
    "networkPolicy.apiServerCIDRs": ["10.0.0.1/32"],
    "networkPolicy.apiServerPorts": [16443],
    "networkPolicy.modelCIDRs": ["10.0.0.0/8"],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}}],
}
# The same by a path's last key, for what several components have.
FLIPPED_KEYS: dict[str, Any] = {
    "digest": "sha256:" + "a" * 64,
    "pullPolicy": "Always",
    "logLevel": "debug",
    "cpu": "7",
    "memory": "7Gi",
    "maxSize": "7Gi",
    "drop": ["NET_RAW", "ALL"],
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [],
    "extraEnv": [{"name": "MORE", "value": "1"}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "extraArgs": ["--more"],
    "extraIngress": [{"ports": [{"port": 1}]}],
    "extraEgress": [{"ports": [{"port": 1}]}],
    "interval": "9s",
}
# Where a value has an effect only beside others.
SURROUNDINGS: dict[str, dict[str, Any]] = {
    "router.replicas": FIXED_REPLICAS,
    "models.cache.hostPath": HOST_PATH,
    "models.cache.maxSize": HOST_PATH,
    "redis.external.existingSecret": EXTERNAL_REDIS,
    "redis.external.key": EXTERNAL_REDIS,
}
NOT_RENDERED = {"allowUnsupportedKubernetes": "lifts a refusal; tested with the refusal"}


def flipped(path: Path, value: Any) -> Any:
    """Another value that the schema takes."""
    dotted = ".".join(path)
    for table, key in ((FLIPPED, dotted), (FLIPPED_KEYS, path[-1])):
        if key in table:
            return table[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return f"{value}x" if value[:1] != "/" or path[-1] == "root" else f"{value}/x"
    assert value == {}, f"say in FLIPPED how {dotted} is flipped"
    return {"example.com-key": "value"}


def rendered(chart: Chart, values: Mapping[str, Any]) -> str:
    """What helm prints, without password and token: where no cluster remembers them, they are others at each rendering."""
    return re.sub(r"(?m)^  (password|token): \S{40,}$", "", chart.render_text(values))


@pytest.mark.slow
@pytest.mark.timeout(3600)  # helm starts once for each value
def test_every_value_changes_what_is_rendered(chart: Chart) -> None:
    paths = [path for path, _ in leaves(chart.values) if ".".join(path) not in NOT_RENDERED]
    baselines: dict[str, str] = {}

    def dead(path: Path) -> str | None:
        dotted = ".".join(path)
        base = overlaid(EVERYTHING, SURROUNDINGS.get(dotted, {}))
        key = json.dumps(SURROUNDINGS.get(dotted))
        if key not in baselines:
            baselines[key] = rendered(chart, base)
        value = flipped(path, at(overlaid(chart.values, base), path))
        try:
            return None if rendered(chart, overlaid(base, nested(path, value))) != baselines[key] else dotted
        except ChartRefusedError as refusal:
            return f"{dotted}={value!r}: {refusal}"

    with ThreadPoolExecutor(4) as threads:
        found = [answer for answer in threads.map(dead, paths) if answer]

    assert found == []


def test_values_that_render_nothing_are_still_values(chart: Chart) -> None:
    assert set(NOT_RENDERED) <= {".".join(path) for path, _ in leaves(chart.values)}


def settings_with_fixed_keys(schema: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Path]:
    """Paths of the maps in `values` whose keys the schema lists."""

    def walk(node: Mapping[str, Any], value: Any, path: Path) -> Iterator[Path]:
        node = resolve(schema, node)
        if not isinstance(value, dict) or "properties" not in node:
            return
        if node.get("additionalProperties") is False:
            yield path
        for key, inner in value.items():
            yield from walk(node["properties"].get(key, {}), inner, (*path, key))

    yield from walk(schema, values, ())


def resolve(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The definition that a node refers to."""
    reference = node.get("$ref")
    return schema["definitions"][reference.rsplit("/", 1)[1]] if reference else node


def load_schema(chart: Chart) -> dict[str, Any]:
    loaded = json.loads((chart.folder / "values.schema.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_a_key_that_the_schema_does_not_know_is_refused_wherever_it_stands(chart: Chart) -> None:
    places = list(settings_with_fixed_keys(load_schema(chart), chart.values))
    values: dict[str, Any] = {}
    for place in places:
        values = overlaid(values, nested((*place, "noSuchKey"), 1))

    with pytest.raises(ChartRefusedError) as refused:
        chart.render(values)

    lines = {line.strip() for line in str(refused.value).splitlines()}
    unseen = [p for p in places if f"- at '{pointer(p)}': additional properties 'noSuchKey' not allowed" not in lines]
    assert unseen == []
    assert len(places) > 30


def pointer(path: Path) -> str:
    return "".join(f"/{part}" for part in path)


def test_a_value_of_the_wrong_type_is_refused_wherever_it_stands(chart: Chart) -> None:
    schema = load_schema(chart)
    fixed = set(settings_with_fixed_keys(schema, chart.values)) | {("global",)}
    wrong: dict[str, Any] = {}
    paths = [(*place, key) for place in fixed for key in at(chart.values, place) if (*place, key) not in fixed]
    for path in paths:
        wrong = overlaid(
            wrong, nested(path, 4.5 if isinstance(at(chart.values, path), list | dict | str | bool) else "x")
        )

    with pytest.raises(ChartRefusedError) as refused:
        chart.render(wrong)

    said = str(refused.value)
    taken = [".".join(path) for path in paths if f"at '{pointer(path)}'" not in said]
    # A quantity may be a number, as in Kubernetes.
    assert sorted(taken) == ["models.cache.maxSize", "models.cache.size", "redis.persistence.size"]


@pytest.mark.parametrize(
    "values",
    [
        {"operator": {"replicas": -1}},
        {"operator": {"image": {"digest": "latest"}}},
        {"operator": {"image": {"pullPolicy": "Sometimes"}}},
        {"router": {"resources": {"request": {"cpu": "1"}}}},
        {"router": {"resources": {"requests": {"cpu": "1 core"}}}},
        {"router": {"podLabels": {"team": 5}}},
        {"router": {"pdb": {"maxUnavailable": "half"}}},
        {"router": {"service": {"port": 70000}}},
        {"router": {"ingress": {"annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": False}}}},
        {"redis": {"mode": "sentinel"}},
        {"redis": {"persistence": {"whenDeleted": "Keep"}}},
        {"models": {"sources": ["ftp"]}},
        {"models": {"cache": {"kind": "NFS"}}},
        {"models": {"cache": {"kind": "HostPath", "hostPath": "relative"}}},
        {"models": {"cache": {"kind": "HostPath", "hostPath": "/m", "maxSize": "much"}}},
        {"worker": {"runAsUser": 0}},
        {"networkPolicy": {"modelCIDRs": ["example.com"]}},
        {"fullnameOverride": "x" * 47},
        {"fullnameOverride": "Upper"},
        {"watchNamespaces": "team-a"},
    ],
    ids=lambda values: json.dumps(values)[:60],
)
def test_the_schema_refuses(chart: Chart, values: dict[str, Any]) -> None:
    with pytest.raises(ChartRefusedError, match="values don't meet the specifications of the schema"):
        chart.render(values)


def test_the_schema_closes_every_object_but_those_it_calls_free(chart: Chart) -> None:
    schema = load_schema(chart)
    free = {"kubernetes", "stringMap", "quantities"}

    def open_objects(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            if node.get("type") == "object" and node.get("additionalProperties") is not False:
                yield path
            for key, inner in node.items():
                yield from open_objects(inner, f"{path}/{key}")

    found = set(open_objects(schema, ""))
    assert found == {f"/definitions/{name}" for name in free} | {"/properties/global"}


def test_schema_and_values_list_the_same_settings(chart: Chart) -> None:
    schema, values = load_schema(chart), chart.values

    def missing(node: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
        node = resolve(schema, node)
        if path == ".router.settings":  # the contract has their defaults
            return
        if isinstance(value, dict) and "properties" in node:
            known = dict(node["properties"])
            # Kubernetes' own optional part of resources.
            known.pop("claims", None)
            yield from (f"{path}.{key}" for key in known.keys() ^ value.keys())
            for key in known.keys() & value.keys():
                yield from missing(known[key], value[key], f"{path}.{key}")

    assert list(missing(schema, values, "")) == []


SHARED_ONLY_WITH_SEVERAL_PODS = {"replicas", "pdb", "topologySpreadConstraints"}
ONLY_ROUTER = {
    "shutdownDelaySeconds",
    "drainTimeoutSeconds",
    "apiKeys",
    "requireTenant",
    "settings",
    "admin",
    "service",
    "autoscaling",
    "ingress",
    "httpRoute",
}
ONLY_REDIS = {"mode", "auth", "maxMemory", "persistence", "external"}
FREE = {"podSecurityContext", "securityContext", "resources"}


def test_components_have_identical_keys(chart: Chart) -> None:
    operator, router, redis = (chart.values[key] for key in ("operator", "router", "redis"))

    assert router.keys() - ONLY_ROUTER == operator.keys()
    assert redis.keys() - ONLY_REDIS == operator.keys() - SHARED_ONLY_WITH_SEVERAL_PODS
    for key in operator.keys() - FREE:
        for other in (router, redis):
            if isinstance(operator[key], dict) and key in other:
                assert other[key].keys() == operator[key].keys(), key
    assert {type(operator[key]) for key in FREE} == {dict}


def test_extra_objects_are_templates(chart: Chart) -> None:
    as_text = 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "{{ .Release.Name }}-text"}'
    as_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": '{{ include "quire.fullname" . }}-map'}}

    objects = chart.render({"extraObjects": [as_text, as_map]})

    assert {"quire-text", "quire-map"} <= set(of_kind(objects, "ConfigMap"))
