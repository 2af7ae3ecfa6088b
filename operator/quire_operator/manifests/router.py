"""The router fleet of a release: Deployment, Service, identity and rights, and the configuration that all of its routers read.

Routers learn what is served through the API: ConfigMaps with the names, pods with the workers.
This module must not know how workers are made, only which names they serve.
"""

from collections.abc import Sequence

from quire_contract import names
from quire_contract.router_config import ModelEntry, RouterConfig, ServiceEntry, encode_config
from quire_operator.api.inference_service import InferenceService
from quire_operator.manifests import parts
from quire_operator.manifests.parts import Manifest
from quire_operator.platform import Platform
from quire_operator.traffic import model_entries, spec_traffic, split_entry

CONTAINER = "router"
COMMAND = "quire-router"
CONFIG_FILE = "router.json"
VOLUME_CONFIG = "config"
VOLUME_STATE = "state"
STATE_PATH = "/var/lib/quire/state"
_STATE_SIZE = "512Mi"
VOLUME_TOKEN = "api-token"  # noqa: S105 - a volume's name
ENV_SOURCE = "ROUTER_SOURCE"
"""One argument that says where the configuration is: $(VAR) cannot become several."""
ENV_SHUTDOWN_DELAY = "SHUTDOWN_DELAY"
GRACE_MARGIN_S = 15
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - where every Kubernetes client looks
_TOKEN_LIFETIME_S = 3600
_ROOT_CA_CONFIG_MAP = "kube-root-ca.crt"
_READ = ("get", "list", "watch")


def router_config(services: Sequence[InferenceService]) -> RouterConfig:
    """Every served name. Endpoints come later: from pods on a cluster, from the supervisor under `quire up`."""
    models: list[ModelEntry] = []
    splits: list[ServiceEntry] = []
    for service in services:
        name = f"{service.metadata.namespace or 'default'}/{service.metadata.name}"
        traffic = spec_traffic(service.spec)
        models += model_entries(name, service.served_names, traffic)
        splits.append(split_entry(name, {}, traffic))
    return RouterConfig(
        models=models, endpoints=[], services=[split for split in splits if split != ServiceEntry(id=split.id)]
    )


def config_map_name(platform: Platform) -> str:
    """The first shard of the configuration."""
    return f"{platform.router_name}-config-0"


def config_map(services: Sequence[InferenceService], platform: Platform) -> Manifest:
    """The configuration as an object; a change of it restarts no router."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": parts.metadata(
            config_map_name(platform),
            platform.namespace,
            {**_labels(platform), names.LABEL_ROUTER_CONFIG: platform.release},
        ),
        "data": {CONFIG_FILE: encode_config(router_config(services)).decode()},
    }


def service_account(platform: Platform) -> Manifest:
    """The routers' identity."""
    return parts.service_account(platform.router_name, platform.namespace, _labels(platform))


def role(platform: Platform) -> Manifest:
    """What routers may do: read names and workers of the release's namespace."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": parts.metadata(platform.router_name, platform.namespace, _labels(platform)),
        "rules": [{"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": list(_READ)}],
    }


def role_binding(platform: Platform) -> Manifest:
    """Gives it to them. A subject must name its namespace, so a release without one counts as in "default"."""
    namespace = platform.namespace or "default"
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": parts.metadata(platform.router_name, platform.namespace, _labels(platform)),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": platform.router_name},
        "subjects": [{"kind": "ServiceAccount", "name": platform.router_name, "namespace": namespace}],
    }


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
        "terminationGracePeriodSeconds": platform.router_shutdown_delay_s
        + platform.router_drain_timeout_s
        + GRACE_MARGIN_S,
        "securityContext": parts.pod_security(platform.run_as_user),
        "topologySpreadConstraints": [spread],
        "containers": [_container(platform)],
        "volumes": [
            parts.trust_volume(platform.trust_secret),
            {"name": VOLUME_STATE, "emptyDir": {"sizeLimit": _STATE_SIZE}},
            _token_volume(),
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
            {"name": VOLUME_STATE, "mountPath": STATE_PATH},
            {"name": VOLUME_TOKEN, "mountPath": _TOKEN_PATH, "readOnly": True},
            *parts.scratch_mounts(),
        ],
    }


def _args(platform: Platform) -> list[str]:
    args = [f"$({ENV_SOURCE})", "--release", platform.release]
    if platform.namespace:
        args += ["--release-namespace", platform.namespace]
    args += ["--host", f"$({names.ENV_HOST})", "--port", f"$({names.ENV_PORT})"]
    args += ["--trust-dir", f"$({names.ENV_TRUST_DIR})", "--state-dir", f"$({names.ENV_STATE_DIR})"]
    args += ["--shutdown-delay", f"$({ENV_SHUTDOWN_DELAY})"]
    return [*args, "--shutdown-timeout", str(platform.router_drain_timeout_s)]


def _token_volume() -> Manifest:
    """What the kubelet would mount by itself, asked for by name: the pod's own token, short-lived, and nothing more."""
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_LIFETIME_S}},
        {"configMap": {"name": _ROOT_CA_CONFIG_MAP, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    return {"name": VOLUME_TOKEN, "projected": {"defaultMode": parts.OWNER_AND_GROUP_READ, "sources": sources}}


def _env(platform: Platform) -> list[Manifest]:
    return [
        parts.field(names.ENV_POD_NAME, "metadata.name"),
        parts.field(names.ENV_POD_IP, "status.podIP"),
        parts.value(names.ENV_HOST, platform.bind_host),
        parts.value(names.ENV_PORT, str(names.PORT_ROUTER)),
        parts.value(names.ENV_TRUST_DIR, parts.TRUST_PATH),
        parts.value(names.ENV_STATE_DIR, STATE_PATH),
        parts.value(ENV_SOURCE, "--kubernetes"),
        parts.value(ENV_SHUTDOWN_DELAY, str(platform.router_shutdown_delay_s)),
        *parts.scratch_env(),
    ]
