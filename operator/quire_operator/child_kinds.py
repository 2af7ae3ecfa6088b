"""The kinds of objects that a service may own, by what a manifest says. This module must not know how they are written."""

from collections.abc import Mapping
from typing import Any

from quire_contract.kube.resources import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    HPA_V2,
    NETWORK_POLICY,
    PDB_V1,
    PDB_V1BETA1,
    PVC,
    SCALED_OBJECT,
    SERVICE,
    SERVICE_ACCOUNT,
    ResourceKind,
)

KINDS: tuple[ResourceKind, ...] = (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    NETWORK_POLICY,
    PDB_V1,
    PDB_V1BETA1,
    PVC,
    SERVICE,
    SERVICE_ACCOUNT,
    SCALED_OBJECT,
    HPA_V2,
)
_BY_MANIFEST = {(kind.api_version, kind.kind): kind for kind in KINDS}


def watched_kinds(disruption_budgets: ResourceKind) -> tuple[ResourceKind, ...]:
    """Kinds whose objects are watched and pruned; `disruption_budgets` is the version that the server has."""
    return (SERVICE_ACCOUNT, SERVICE, NETWORK_POLICY, disruption_budgets, CONTROLLER_REVISION, DEPLOYMENT)


def kind_of(manifest: Mapping[str, Any]) -> ResourceKind:
    """The kind of a manifest that we made."""
    return _BY_MANIFEST[manifest["apiVersion"], manifest["kind"]]


def controller_of(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The owner reference of the object's controller."""
    owners = item["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)
