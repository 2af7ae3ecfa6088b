"""From pods and the operator's shards to the configuration a router serves. Pure functions over objects as the API server gives them.

    pod without an address, that has ended or is being deleted   left out: nothing new goes there, what runs there goes on
    two pods with one address                                    the younger has it: addresses are reused, and news of a death come late
    models of a pod                                              what it says it serves, of that what the shards give its service

An endpoint's id is the pod's name in the release's own namespace, "namespace/name" elsewhere: the same in every router, and unchanged
whatever other pods come and go. This module must not know how the objects got here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from quire_contract import names
from quire_contract.router_config import EndpointEntry, RouterConfig, merge_shards

ENDED_PHASES = frozenset({"Succeeded", "Failed"})


class WorkerPod(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a worker's pod."""

    namespace: str
    name: str
    address: str
    """IPv4 or IPv6, without brackets. Empty: it has none, or must not be used any more."""
    service: str
    """Name of the InferenceService, in the pod's namespace."""
    revision: str
    served_names: tuple[str, ...]
    """Names that the worker answers to."""
    age_key: tuple[str, str]
    """Greater for a younger pod."""

    @property
    def key(self) -> tuple[str, str]:
        """Unique among pods."""
        return self.namespace, self.name


def key_of(document: Mapping[str, Any]) -> tuple[str, str]:
    """(namespace, name) of any object."""
    meta = document.get("metadata") or {}
    return meta.get("namespace") or "", meta.get("name") or ""


def read_pod(document: Mapping[str, Any]) -> WorkerPod:
    """A pod as far as it matters here. Whatever is missing or malformed makes a pod that serves nothing, never an error."""
    meta, status = document.get("metadata") or {}, document.get("status") or {}
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    namespace, name = key_of(document)
    is_over = bool(meta.get("deletionTimestamp")) or status.get("phase") in ENDED_PHASES
    return WorkerPod(
        namespace=namespace,
        name=name,
        address="" if is_over else status.get("podIP") or "",
        service=labels.get(names.LABEL_SERVICE) or "",
        revision=labels.get(names.LABEL_REVISION) or "",
        served_names=_served_names(annotations.get(names.ANNOTATION_SERVED_NAMES)),
        age_key=(meta.get("creationTimestamp") or "", meta.get("uid") or ""),
    )


def desired_config(shards: Sequence[RouterConfig], pods: Iterable[WorkerPod], home: str) -> RouterConfig:
    """The whole configuration; `home` is the release's own namespace. Endpoints in an order that is the same in every router."""
    merged = merge_shards(shards)
    names_of: dict[str, set[str]] = {}
    for model in merged.models:
        names_of.setdefault(model.service, set()).add(model.name)
    endpoints = []
    for pod in sorted(_of_each_address(pods), key=lambda pod: pod.key):
        service = f"{pod.namespace}/{pod.service}"
        served = [name for name in pod.served_names if name in names_of.get(service, ())]
        if served:
            endpoints.append(_endpoint(pod, service, served, home))
    return msgspec.structs.replace(merged, endpoints=endpoints)


def _of_each_address(pods: Iterable[WorkerPod]) -> Iterable[WorkerPod]:
    youngest: dict[str, WorkerPod] = {}
    for pod in pods:
        other = youngest.get(pod.address)
        if pod.address and (other is None or pod.age_key > other.age_key):
            youngest[pod.address] = pod
    return youngest.values()


def _endpoint(pod: WorkerPod, service: str, served: list[str], home: str) -> EndpointEntry:
    host = f"[{pod.address}]" if ":" in pod.address else pod.address
    is_home = pod.namespace == home
    return EndpointEntry(
        id=pod.name if is_home else f"{pod.namespace}/{pod.name}",
        pod="" if is_home else pod.name,
        url=f"http://{host}:{names.PORT_HTTP}",
        events=f"tcp://{host}:{names.PORT_EVENTS}",
        replay=f"tcp://{host}:{names.PORT_REPLAY}",
        models=served,
        service=service,
        revision=pod.revision,
    )


def _served_names(annotation: str | None) -> tuple[str, ...]:
    """The annotation holds a JSON list of names."""
    if not annotation:
        return ()
    try:
        return tuple(dict.fromkeys(msgspec.json.decode(annotation, type=tuple[str, ...])))
    except msgspec.DecodeError:
        return ()
