"""Writes a service's number of replicas, through /scale, as any other autoscaler would. This module must not know why."""

import logging
from collections.abc import Mapping
from typing import Any

from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import INFERENCE_SERVICE
from quire_contract.telemetry import log_event
from quire_operator.autoscale.course import View
from quire_operator.autoscale.loop import ScaleError
from quire_operator.decision import EventNote
from quire_operator.events import EventPoster
from quire_operator.metrics import Metrics
from quire_operator.store import KubeObject, ObjectStore
from quire_operator.trimming import trim_object

logger = logging.getLogger(__name__)

FIELD_MANAGER = "quire-autoscaler"
"""Writes spec.replicas, and nothing else."""
_SCALE = "scale"
_CHANGED = "somebody else has changed the service's spec; it is decided anew"


class ScaleWriter:
    """One for the process. `documents` learns of every write, so that the change is acted on without waiting for a watch."""

    def __init__(self, client: KubeClient, documents: ObjectStore, events: EventPoster, metrics: Metrics) -> None:
        self._client = client
        self._documents = documents
        self._events = events
        self._metrics = metrics

    async def write(self, document: KubeObject, view: View) -> None:
        """Make spec.replicas `view.verdict.replicas`, of the spec that was decided on: whoever wrote meanwhile is not overruled.

        ScaleError if somebody did, or the server refuses or is away.
        """
        if replicas_of(document) != view.replicas:
            raise ScaleError(_CHANGED)
        try:
            try:
                written = await self._put(document, view.verdict.replicas)
            except KubeError as error:
                if error.status != 409:
                    raise
                document = await self._newest(document)
                written = await self._put(document, view.verdict.replicas)
        except KubeError as error:
            raise ScaleError(_told(error)) from None
        self._documents.put(_scaled(document, view.verdict.replicas, written))
        await self._note(document, view)

    async def _newest(self, document: KubeObject) -> KubeObject:
        """The service's newest version, if its spec is still that of `document`: a status that was written meanwhile changes nothing."""
        meta = document["metadata"]
        newest = trim_object(await self._client.get(INFERENCE_SERVICE, meta["namespace"], meta["name"]))
        self._documents.put(newest)
        if any(newest["metadata"].get(key) != meta.get(key) for key in ("uid", "generation")):
            raise ScaleError(_CHANGED)
        return newest

    async def _put(self, document: KubeObject, replicas: int) -> KubeObject:
        meta = document["metadata"]
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion")},
            "spec": {"replicas": replicas},
        }
        return await self._client.replace(
            INFERENCE_SERVICE, meta["namespace"], meta["name"], body, subresource=_SCALE, field_manager=FIELD_MANAGER
        )

    async def _note(self, document: KubeObject, view: View) -> None:
        verdict, meta = view.verdict, document["metadata"]
        direction = "up" if verdict.replicas > view.replicas else "down"
        self._metrics.scalings.labels(direction, verdict.reason).inc()
        log_event(
            logger,
            logging.INFO,
            "scaled",
            service=f"{meta['namespace']}/{meta['name']}",
            replicas=verdict.replicas,
            before=view.replicas,
            reason=verdict.reason,
        )
        message = f"from {view.replicas} to {verdict.replicas} replicas; {verdict.reason}: {verdict.message}"
        reason = "ScaledUp" if direction == "up" else "ScaledDown"
        await self._events.post(document, [EventNote(type="Normal", reason=reason, message=message[:1000])])


def replicas_of(document: Mapping[str, Any]) -> int:
    """spec.replicas of an InferenceService."""
    return int((document.get("spec") or {}).get("replicas", 1))


def _scaled(document: KubeObject, replicas: int, written: Mapping[str, Any]) -> KubeObject:
    """The document after the write: it was the newest version, or the server had refused."""
    meta = {**document["metadata"], "resourceVersion": written["metadata"]["resourceVersion"]}
    meta["generation"] = int(meta.get("generation", 0)) + 1
    return {**document, "metadata": meta, "spec": {**document["spec"], "replicas": replicas}}


def _told(error: KubeError) -> str:
    if error.status == 409:
        return "somebody else writes the service all the time; it is decided anew"
    if error.status == 403:
        return "the operator may not update inferenceservices/scale; upgrade the release's chart, or its Roles"
    return str(error)
