"""The kinds of objects that Quire reads or writes, and their addresses at the API server. This module must not know HTTP."""

from dataclasses import dataclass
from urllib.parse import quote

from quire_contract import names


@dataclass(frozen=True, kw_only=True)
class ResourceKind:
    """One kind of object in one API version."""

    group: str
    """Empty for the core group."""
    version: str
    """Such as v1."""
    plural: str
    """As in the path."""
    kind: str
    """As in a manifest."""
    namespaced: bool = True
    """Whether objects live in a namespace."""

    @property
    def api_version(self) -> str:
        """As in a manifest."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_path(self) -> str:
        """The path under which the API server describes the group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of one object, or of all in `namespace`, or in all namespaces where that is None."""
        parts = [self.group_path]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            assert namespace is not None or not self.namespaced, "an object of a namespaced kind needs its namespace"
            parts.append(quote(name, safe=""))
            if subresource is not None:
                parts.append(subresource)
        return "/".join(parts)


def _core(plural: str, kind: str, *, namespaced: bool = True) -> ResourceKind:
    return ResourceKind(group="", version="v1", plural=plural, kind=kind, namespaced=namespaced)


def _ours(plural: str, kind: str) -> ResourceKind:
    return ResourceKind(group=names.GROUP, version="v1alpha1", plural=plural, kind=kind)


POD = _core("pods", "Pod")
CONFIG_MAP = _core("configmaps", "ConfigMap")
SECRET = _core("secrets", "Secret")
SERVICE = _core("services", "Service")
SERVICE_ACCOUNT = _core("serviceaccounts", "ServiceAccount")
PVC = _core("persistentvolumeclaims", "PersistentVolumeClaim")
EVENT = _core("events", "Event")
NODE = _core("nodes", "Node", namespaced=False)
NAMESPACE = _core("namespaces", "Namespace", namespaced=False)
DEPLOYMENT = ResourceKind(group="apps", version="v1", plural="deployments", kind="Deployment")
CONTROLLER_REVISION = ResourceKind(group="apps", version="v1", plural="controllerrevisions", kind="ControllerRevision")
NETWORK_POLICY = ResourceKind(group="networking.k8s.io", version="v1", plural="networkpolicies", kind="NetworkPolicy")
PDB_V1 = ResourceKind(group="policy", version="v1", plural="poddisruptionbudgets", kind="PodDisruptionBudget")
PDB_V1BETA1 = ResourceKind(group="policy", version="v1beta1", plural="poddisruptionbudgets", kind="PodDisruptionBudget")
LEASE = ResourceKind(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease")
INFERENCE_SERVICE = _ours("inferenceservices", "InferenceService")
MODEL_ROUTE = _ours("modelroutes", "ModelRoute")
TENANT = _ours("tenants", "Tenant")
SCALED_OBJECT = ResourceKind(group="keda.sh", version="v1alpha1", plural="scaledobjects", kind="ScaledObject")
HPA_V2 = ResourceKind(
    group="autoscaling", version="v2", plural="horizontalpodautoscalers", kind="HorizontalPodAutoscaler"
)
ENDPOINT_SLICE_V1 = ResourceKind(group="discovery.k8s.io", version="v1", plural="endpointslices", kind="EndpointSlice")
ENDPOINT_SLICE_V1BETA1 = ResourceKind(
    group="discovery.k8s.io", version="v1beta1", plural="endpointslices", kind="EndpointSlice"
)
