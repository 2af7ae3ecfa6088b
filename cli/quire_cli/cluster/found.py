"""What the API server has of services, as `quire status` and `quire rollback` read it: the resources and what belongs to them.

This module must not know how any of it is shown.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_cli.errors import EXIT_FAILED, CommandError
from quire_contract import names
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import CONTROLLER_REVISION, EVENT, INFERENCE_SERVICE, POD, ResourceKind

KubeObject = dict[str, Any]
MAX_EVENTS = 12


@dataclass(frozen=True, kw_only=True)
class FoundService:
    """One service and its children. None: we may not read them."""

    document: KubeObject
    """The InferenceService."""
    revisions: tuple[KubeObject, ...] | None
    """Its ControllerRevisions, newest first."""
    pods: tuple[KubeObject, ...] | None
    """Its pods, oldest first."""
    events: tuple[KubeObject, ...] | None
    """The last events about it or its pods, oldest first."""


async def list_services(client: KubeClient, namespace: str | None) -> list[KubeObject]:
    """Every InferenceService of a namespace, or of all, by namespace and name."""
    items, _ = await client.list(INFERENCE_SERVICE, namespace)
    return sorted(items, key=lambda item: (item["metadata"]["namespace"], item["metadata"]["name"]))


async def get_service(client: KubeClient, namespace: str, name: str) -> KubeObject:
    """One InferenceService. CommandError that names the near ones if there is none."""
    try:
        return await client.get(INFERENCE_SERVICE, namespace, name)
    except KubeError as error:
        if error.status != 404 or "could not find the requested resource" in error.message:
            raise
    known = [item["metadata"]["name"] for item in await list_services(client, namespace)]
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"there are: {', '.join(known)}" if known else "the namespace has none; choose another one with -n"
    raise CommandError(f"InferenceService {name} is not in namespace {namespace}; {hint}", exit_code=EXIT_FAILED)


async def find_service(client: KubeClient, namespace: str, name: str) -> FoundService:
    """The service with all that belongs to it."""
    document = await get_service(client, namespace, name)
    pods = await _readable(client, POD, namespace, f"{names.LABEL_SERVICE}={name}")
    events = await _readable(client, EVENT, namespace)
    return FoundService(
        document=document,
        revisions=await find_revisions(client, document),
        pods=None if pods is None else tuple(sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])),
        events=None if events is None else _about(events, document, pods or []),
    )


async def find_revisions(client: KubeClient, document: KubeObject) -> tuple[KubeObject, ...] | None:
    """The service's stored revisions, newest first."""
    items = await _readable(client, CONTROLLER_REVISION, document["metadata"]["namespace"])
    if items is None:
        return None
    uid = document["metadata"]["uid"]
    owned = [item for item in items if any(o["uid"] == uid for o in item["metadata"].get("ownerReferences", ()))]
    return tuple(sorted(owned, key=lambda item: int(item["revision"]), reverse=True))


def condition(document: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of that type; empty if the operator has not written it."""
    conditions = (document.get("status") or {}).get("conditions") or ()
    return next((entry for entry in conditions if entry.get("type") == kind), {})


def is_seen(document: Mapping[str, Any]) -> bool:
    """Whether the operator has looked at the spec as it stands."""
    observed = (document.get("status") or {}).get("observedGeneration") or 0
    generation: int = document["metadata"].get("generation", 0)
    return bool(observed >= generation)


def is_scaled_to_zero(document: Mapping[str, Any]) -> bool:
    """Whether the operator says that it has no replicas because none are wanted."""
    return is_seen(document) and condition(document, "Ready").get("reason") == "ScaledToZero"


def is_paused(document: Mapping[str, Any]) -> bool:
    """Whether the operator leaves the service alone."""
    annotations = document["metadata"].get("annotations") or {}
    return bool(annotations.get(names.ANNOTATION_PAUSED) == "true")


async def _readable(
    client: KubeClient, kind: ResourceKind, namespace: str, selector: str = ""
) -> list[KubeObject] | None:
    """The objects, or None if we may not read that kind: a person with few permissions still sees the rest."""
    try:
        items, _ = await client.list(kind, namespace, selector)
    except KubeError as error:
        if error.status == 403:
            return None
        raise
    return items


def _about(events: list[KubeObject], document: KubeObject, pods: list[KubeObject]) -> tuple[KubeObject, ...]:
    uids = {document["metadata"]["uid"], *(pod["metadata"]["uid"] for pod in pods)}
    ours = [event for event in events if event["involvedObject"].get("uid") in uids]
    return tuple(sorted(ours, key=lambda event: event_time(event) or "")[-MAX_EVENTS:])


def event_time(event: Mapping[str, Any]) -> str | None:
    """When it happened last."""
    series = event.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    )
    return next((str(time) for time in times if time), None)
