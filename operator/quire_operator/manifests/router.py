"""The router fleet of a release: Deployment, Service, ServiceAccount, and the configuration that all of its routers read.

This module must not know how workers are made, only which names they serve.
"""

from collections.abc import Sequence

from quire_contract import names
from quire_contract.router_config import ModelEntry, RouterConfig, encode_config
from quire_operator.api.inference_service import InferenceService
from quire_operator.manifests import parts
from quire_operator.manifests.parts import Manifest
from quire_operator.platform import Platform

CONTAINER = "router"
COMMAND = "quire-router"
CONFIG_FOLDER = "/etc/quire/router"
CONFIG_FILE = "router.json"
VOLUME_CONFIG = "config"
GRACE_MARGIN_S = 15


def router_config(services: Sequence[InferenceService]) -> RouterConfig:
    """Every served name. Endpoints come later: from pods on a cluster, from the supervisor under `quire up`."""
    models = [
        ModelEntry(name=name, service=f"{service.metadata.namespace or 'default'}/{service.metadata.name}")
        for service in services
        for name in service.served_names
    ]
    return RouterConfig(models=models, endpoints=[])


def config_map_name(platform: Platform) -> str:
    """The first shard of the configuration."""
    return f"{platform.router_name}-config-0"


def config_map(services: Sequence[InferenceService], platform: Platform) -> Manifest:
    """The configuration as an object; a change of it restarts no router."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": parts.metadata(config_map_name(platform), platform.namespace, _labels(platform)),
        "data": {CONFIG_FILE: encode_config(router_config(services)).decode()},
    }


def service_account(platform: Platform) -> Manifest:
    """The routers' identity."""
    return parts.service_account(platform.router_name, platform.namespace, _labels(platform))


def service(platform: Platform) -> Manifest:
    """The endpoint that clients use."""
    port = {"name": names.PORT_NAME_HTTP, "port": 80, "targetPort": names.PORT_NAME_HTTP, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": parts.metadata(platform.router_name, platform.namespace, _labels(platform)),
        "spec": {"type": "ClusterIP", "selector": _selector(platform), "ports": [port]},
    }


def disruption_budget(platform: Platform) -> Manifest:
    """One router at a time."""
    meta = parts.metadata(platform.router_name, platform.namespace, _labels(platform))
    return parts.disruption_budget(platform.pod_disruption_budget_api, meta, _selector(platform))


def deployment(platform: Platform) -> Manifest:
    """The routers."""
    template = {"metadata": {"labels": dict(sorted(_labels(platform).items()))}, "spec": _pod_spec(platform)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": parts.metadata(platform.router_name, platform.namespace, _labels(platform)),
        "spec": {
            "replicas": platform.router_replicas,
            "selector": {"matchLabels": _selector(platform)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 3,
            "template": template,
        },
    }


def _selector(platform: Platform) -> dict[str, str]:
    return {names.LABEL_INSTANCE: platform.release, names.LABEL_ROLE: names.ROLE_ROUTER}


def _labels(platform: Platform) -> dict[str, str]:
    return {**parts.common_labels(platform.release, names.ROLE_ROUTER), **_selector(platform)}


def _pod_spec(platform: Platform) -> Manifest:
    spread = {
        "topologyKey": "kubernetes.io/hostname",
        "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": _selector(platform)},
    }
    spec: Manifest = {
        "serviceAccountName": platform.router_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": platform.router_drain_timeout_s + GRACE_MARGIN_S,
        "securityContext": parts.pod_security(platform.run_as_user),
        "topologySpreadConstraints": [spread],
        "containers": [_container(platform)],
        "volumes": [
            parts.trust_volume(platform.trust_secret),
            {"name": VOLUME_CONFIG, "configMap": {"name": config_map_name(platform)}},
            *parts.scratch_volumes(),
        ],
    }
    if platform.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in platform.image_pull_secrets]
    return spec


def _container(platform: Platform) -> Manifest:
    return {
        "name": CONTAINER,
        "image": platform.router_image,
        "imagePullPolicy": platform.image_pull_policy,
        "command": [COMMAND],
        "args": _args(platform),
        "env": _env(platform),
        "ports": [{"name": names.PORT_NAME_HTTP, "containerPort": names.PORT_ROUTER, "protocol": "TCP"}],
        "resources": {key: dict(amounts) for key, amounts in platform.router_resources.items()},
        "startupProbe": parts.http_probe(names.PATH_HEALTH, period_s=1, timeout_s=2, failures=60),
        "readinessProbe": parts.http_probe(names.PATH_READY, period_s=2, timeout_s=2, failures=2),
        "livenessProbe": parts.http_probe(names.PATH_HEALTH, period_s=10, timeout_s=5, failures=3),
        "securityContext": parts.container_security(),
        "volumeMounts": [
            parts.trust_mount(),
            {"name": VOLUME_CONFIG, "mountPath": CONFIG_FOLDER, "readOnly": True},
            *parts.scratch_mounts(),
        ],
    }


def _args(platform: Platform) -> list[str]:
    args = ["--config", f"$({names.ENV_ROUTER_CONFIG})", "--host", f"$({names.ENV_HOST})"]
    args += ["--port", f"$({names.ENV_PORT})", "--trust-dir", f"$({names.ENV_TRUST_DIR})"]
    return [*args, "--shutdown-timeout", str(platform.router_drain_timeout_s)]


def _env(platform: Platform) -> list[Manifest]:
    return [
        parts.field(names.ENV_POD_NAME, "metadata.name"),
        parts.field(names.ENV_POD_IP, "status.podIP"),
        parts.value(names.ENV_HOST, platform.bind_host),
        parts.value(names.ENV_PORT, str(names.PORT_ROUTER)),
        parts.value(names.ENV_TRUST_DIR, parts.TRUST_PATH),
        parts.value(names.ENV_ROUTER_CONFIG, f"{CONFIG_FOLDER}/{CONFIG_FILE}"),
        *parts.scratch_env(),
    ]
