"""What the operator knows about the release and the cluster, apart from the resources: images, API versions, defaults.

This module must not know any resource; `desired_state` reads both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    worker_requests: Mapping[str, str] = field(default_factory=lambda: {"cpu": "1", "memory": "2Gi"})
    """Requests of a worker's container for what its service leaves open."""
    trust_secret: str = names.TRUST_SECRET
    """The Secret by which routers, workers and operator know each other; it must exist before a pod starts."""
    model_sources: frozenset[str] = frozenset({"file", "pvc"})
    """Schemes of spec.model.uri that become a folder in the pod here; the others wait for the model fetcher."""
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

    @property
    def router_name(self) -> str:
        """Name of the router's Deployment, Service and ServiceAccount."""
        return f"{self.release}-router"
