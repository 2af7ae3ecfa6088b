"""What is kept of an object that is watched: enough to decide and to compare, as little as may be, for there may be thousands.

This module must not know who reads the rest.
"""

from collections.abc import Mapping
from typing import Any

KubeObject = dict[str, Any]

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_POD_META = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "labels",
             "annotations", "ownerReferences", "generateName", "deletionGracePeriodSeconds")  # fmt: skip
_POD_SPEC = ("nodeName",)
_POD_CONTAINER = ("name", "image", "resources")
_POD_STATUS = ("phase", "reason", "message", "conditions", "podIP", "podIPs", "startTime", "containerStatuses",
               "initContainerStatuses")  # fmt: skip


def trim_object(item: KubeObject) -> KubeObject:
    """Any object, without the book-keeping that nobody here reads. `item` is changed."""
    meta = item.get("metadata") or {}
    meta.pop("managedFields", None)
    meta.pop("selfLink", None)
    annotations = meta.get("annotations")
    if annotations:
        annotations.pop(_LAST_APPLIED, None)
    return item


def trim_autoscaler(item: KubeObject) -> KubeObject:
    """A ScaledObject or an HPA without what its owner writes into its status at every look. `item` is changed."""
    status = item.get("status") or {}
    if status:
        item["status"] = {"conditions": status.get("conditions") or []}
    return trim_object(item)


def trim_pod(item: KubeObject) -> KubeObject:
    """A pod's identity, place, images, resources and state."""
    spec = item.get("spec") or {}
    containers = {
        group: [_some(container, _POD_CONTAINER) for container in spec[group]]
        for group in ("containers", "initContainers")
        if spec.get(group)
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": trim_object({"metadata": _some(item["metadata"], _POD_META)})["metadata"],
        "spec": {**_some(spec, _POD_SPEC), **containers},
        "status": _some(item.get("status") or {}, _POD_STATUS),
    }


def _some(mapping: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: mapping[key] for key in keys if key in mapping}
