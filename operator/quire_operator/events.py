"""Posts Kubernetes Events about our resources, the same one at most every ten minutes. This module must not know their meaning."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import EVENT
from quire_contract.telemetry import log_event
from quire_operator.decision import EventNote
from quire_operator.manifests.parts import MANAGER

logger = logging.getLogger(__name__)

_QUIET_S = 600.0
_MAX_REMEMBERED = 10_000
_MAX_MESSAGE_CHARS = 1024


class EventPoster:
    """Remembers what was said of whom."""

    def __init__(self, client: KubeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._said_s: dict[tuple[str, str, str], float] = {}

    async def post(self, document: Mapping[str, Any], notes: Iterable[EventNote]) -> None:
        """Post what was not said lately. An event that the server refuses is logged and not tried again."""
        for note in notes:
            key = (document["metadata"]["uid"], note.reason, note.message)
            now_s = self._clock()
            said_s = self._said_s.get(key, float("-inf"))
            if now_s - said_s < _QUIET_S:
                continue
            self._said_s[key] = now_s
            while len(self._said_s) > _MAX_REMEMBERED:
                self._said_s.pop(next(iter(self._said_s)))
            await self._create(document, note)

    async def _create(self, document: Mapping[str, Any], note: EventNote) -> None:
        meta = document["metadata"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": f"{meta['name']}.{uuid4().hex[:16]}", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": document["apiVersion"],
                "kind": document["kind"],
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
                "resourceVersion": meta.get("resourceVersion"),
            },
            "type": note.type,
            "reason": note.reason,
            "message": note.message[:_MAX_MESSAGE_CHARS],
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._client.create(EVENT, meta["namespace"], body)
        except KubeError as error:
            log_event(logger, logging.WARNING, "event not posted", about=meta["name"], reason=str(error))
