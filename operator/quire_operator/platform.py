"""What the operator knows about the release and the cluster, apart from the resources: images, API versions, defaults.

This module must not know any resource; `desired_state` reads both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quire_contract import names

VERSION = "0.1.0"


@dataclass(frozen=True, kw_only=True)
class SpotPool:
    """How this cluster marks nodes that may be taken away at short notice."""

    label_key: str
    """The label that such nodes carry, and the key of their taint."""
    label_value: str
    """Its value."""


@dataclass(frozen=True, kw_only=True)
class ModelCache:
    """Where fetched models are kept between pods."""

    kind: Literal["EmptyDir", "PersistentVolumeClaim", "HostPath"] = "EmptyDir"
    """EmptyDir fetches anew for each pod; a claim is shared by the namespace's pods; a HostPath by a node's."""
    claim: str = "quire-models"
    """Name of the claim; the operator makes it in a service's namespace if it is missing, and never deletes it."""
    size: str = "100Gi"
    """Of a claim that the operator makes, and the limit of an emptyDir."""
    storage_class: str | None = None
    """Of a claim that the operator makes; None takes the cluster's default."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """Of a claim that the operator makes; ReadWriteOnce keeps a service's pods on one node."""
    host_path: str = ""
    """Absolute folder on every node, for HostPath: such pods do not pass the restricted Pod Security profile."""
    max_size: str = ""
    """Of all models in a claim or HostPath: the least recently used that no worker reads are deleted for a new one. Empty: none."""


@dataclass(frozen=True, kw_only=True)
class KedaScaler:
    """How KEDA reaches the operator's external scaler, and what else it may ask."""

    address: str
    """Host and port of the Service, as KEDA dials it."""
    tls: bool = False
    """Whether the scaler speaks TLS."""
    authentication: str = ""
    """TriggerAuthentication with caCert, and with tlsClientCert and tlsClientKey where the scaler asks for them; empty: none."""
    authentication_kind: Literal["ClusterTriggerAuthentication", "TriggerAuthentication"] = (
        "ClusterTriggerAuthentication"
    )
    """One for the cluster, or one of that name in each service's namespace."""
    prometheus_address: str = ""
    """URL of a Prometheus that scrapes all routers, as a second source of demand; empty: none."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """One release of Quire on one cluster."""

    release: str = "quire"
    """Prefix of the router's objects."""
    namespace: str | None = None
    """Namespace of the release; None leaves it to whoever applies the manifests."""
    worker_image: str = f"quire-worker:{VERSION}"
    """Image of workers that run on CPUs."""
    worker_cuda_image: str = f"quire-worker:{VERSION}-cuda"
    """Image of workers that run on Nvidia devices."""
    router_image: str = f"quire-router:{VERSION}"
    """Image of the routers."""
    image_pull_policy: str = "IfNotPresent"
    """As in a container's spec."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets for every pod of the release, before those that a service names."""
    router_replicas: int = 1
    """Routers of the release."""
    router_resources: Mapping[str, Mapping[str, str]] = field(
        default_factory=lambda: {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}
    )
    """Resources of a router's container."""
    router_drain_timeout_s: int = 60
    """How long a terminating router lets its streams finish."""
    router_shutdown_delay_s: int = 5
    """How long a terminating router still takes requests, until nobody sends it any: Services and Ingresses learn late."""
    worker_requests: Mapping[str, str] = field(default_factory=lambda: {"cpu": "1", "memory": "2Gi"})
    """Requests of a worker's container for what its service leaves open."""
    router_service_port: int = 80
    """Port of the routers' Service."""
    trust_secret: str = names.TRUST_SECRET
    """The Secret by which routers, workers and operator know each other; it must exist before a pod starts."""
    model_sources: frozenset[str] = frozenset({"file", "pvc", "hf", "s3", "http", "https"})
    """Schemes of spec.model.uri that become a folder in the pod here."""
    model_cache: ModelCache = ModelCache()
    """Where fetched models are kept."""
    hf_endpoint: str = "https://huggingface.co"
    """Where hf:// repositories are fetched from."""
    s3_endpoint: str | None = None
    """Where s3:// buckets are, for stores other than AWS."""
    proxy_env: Mapping[str, str] = field(default_factory=dict)
    """HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the model fetcher."""
    ca_config_map: str | None = None
    """ConfigMap with key ca.crt in each service's namespace: further authorities that the model fetcher trusts."""
    network_policies: bool = True
    """Whether pods are fenced in by NetworkPolicies."""
    metrics_from: tuple[Mapping[str, object], ...] = ()
    """NetworkPolicyPeers that may scrape metrics, beside routers and operator."""
    fetch_resources: Mapping[str, Mapping[str, str]] = field(
        default_factory=lambda: {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"cpu": "2", "memory": "512Mi"},
        }
    )
    """Resources of the model fetcher's container; a pod's are the larger of these and the worker's."""
    model_cidrs: tuple[str, ...] = ()
    """CIDRs that model fetchers may reach on 443 (and on their endpoint's port); empty: all."""
    max_concurrent_upgrades: int = 1
    """Services at once that move to a new default image of the release; 0 leaves them where they are."""
    model_root: str = "/srv/quire"
    """Folder of the worker's image that relative file: sources start from, and below which other sources are mounted."""
    bind_host: str = "0.0.0.0"  # noqa: S104  (inside a pod; the NetworkPolicy decides who comes in)
    """Address that containers listen on; "::" on clusters with IPv6 only."""
    run_as_user: int = 65532
    """User and group of all processes."""
    spot: SpotPool | None = None
    """Nodes for spec.placement.spot; None if there are none."""
    pod_disruption_budget_api: str = "policy/v1"
    """API version of PodDisruptionBudget."""
    keda: KedaScaler | None = None
    """None: nothing is served to KEDA, and no ScaledObject is made."""

    @property
    def router_name(self) -> str:
        """Name of the router's Deployment, Service and ServiceAccount."""
        return f"{self.release}-router"
