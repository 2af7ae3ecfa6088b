"""A KEDA that is small enough for a test and keeps KEDA's rules: it speaks the published protocol to the scaler, and writes /scale.

The rules are those of KEDA's pkg/scaling/executor/scale_scaledobjects.go (between none and one) and of HPA's external AverageValue
(from one on). `ScaledObject` is as KEDA's CRD has it, with everything in spec and status allowed.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import INFERENCE_SERVICE, SCALED_OBJECT, ResourceKind
from tests.operator.keda.wire import KedaClient

Document = dict[str, Any]
POLL_S = 0.05
MAX_POLLS = 2400
LABEL, FINALIZER = "scaledobject.keda.sh/name", "finalizer.keda.sh"
CRD_KIND = ResourceKind(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    namespaced=False,
)
_ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
CRD = {
    "apiVersion": CRD_KIND.api_version,
    "kind": CRD_KIND.kind,
    "metadata": {"name": "scaledobjects.keda.sh"},
    "spec": {
        "group": "keda.sh",
        "scope": "Namespaced",
        "names": {
            "plural": "scaledobjects",
            "singular": "scaledobject",
            "kind": "ScaledObject",
            "listKind": "ScaledObjectList",
        },
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {"type": "object", "properties": {"spec": _ANYTHING, "status": _ANYTHING}}
                },
            }
        ],
    },
}


async def install(client: KubeClient) -> None:
    """The CRD, served."""
    await client.create(CRD_KIND, None, CRD)
    for _ in range(MAX_POLLS):
        if await client.serves(SCALED_OBJECT):
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError("the CRD is not served")


async def uninstall(client: KubeClient) -> None:
    """The CRD and its objects, gone, finalizers or not: nobody is there to take those off."""
    with contextlib.suppress(KubeError):
        await client.delete(CRD_KIND, None, CRD["metadata"]["name"])
    for _ in range(MAX_POLLS):
        if not await client.serves(SCALED_OBJECT):
            return
        with contextlib.suppress(KubeError):
            items, _ = await client.list(SCALED_OBJECT, None)
            for item in items:
                meta = item["metadata"]
                body = {"metadata": {"finalizers": None}}
                await client.merge_patch(SCALED_OBJECT, meta["namespace"], meta["name"], body)
        await asyncio.sleep(POLL_S)
    raise AssertionError("the CRD does not go")


class KedaStandIn:
    """Scales what the ScaledObjects of one namespace say, by the scaler at `address`."""

    def __init__(self, client: KubeClient, namespace: str, address: str) -> None:
        self._client = client
        self._namespace = namespace
        self._address = address
        self._last_active_s: dict[str, float] = {}
        self._polled_s: dict[str, float] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self.scalings: list[tuple[str, int]] = []
        """Why ("push", "poll", "hpa") and to how many."""
        self.looks = asyncio.Lock()
        """Nothing is polled while it is held: what is scaled then was pushed."""
        self.lets_go = True
        """Whether it takes its finalizer off what is deleted."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["KedaStandIn"]:
        async with KedaClient(self._address) as scaler:
            task = asyncio.create_task(self._run(scaler))
            try:
                yield self
            finally:
                tasks = [task, *self._streams.values()]
                for one in tasks:
                    one.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, scaler: KedaClient) -> None:
        while True:
            with contextlib.suppress(KubeError):  # the CRD may be gone, or an object have changed
                items, _ = await self._client.list(SCALED_OBJECT, self._namespace)
                for item in items:
                    await self._handle(scaler, item)
            await asyncio.sleep(POLL_S)

    async def _handle(self, scaler: KedaClient, item: Document) -> None:
        meta, uid = item["metadata"], item["metadata"]["uid"]
        if meta.get("deletionTimestamp"):
            if stream := self._streams.pop(uid, None):
                stream.cancel()
            if self.lets_go:
                await self._patch(meta["name"], {"metadata": {"finalizers": None}})
            return
        if FINALIZER not in (meta.get("finalizers") or ()):
            await self._patch(meta["name"], {"metadata": {"finalizers": [FINALIZER], "labels": {LABEL: meta["name"]}}})
        if uid not in self._streams:
            self._streams[uid] = asyncio.create_task(self._listen(scaler, item))
        if time.monotonic() - self._polled_s.get(uid, float("-inf")) >= item["spec"]["pollingInterval"]:
            async with self.looks:
                self._polled_s[uid] = time.monotonic()
                await self._poll(scaler, item)

    async def _listen(self, scaler: KedaClient, item: Document) -> None:
        """StreamIsActive: only True does anything."""
        (trigger,) = [one for one in item["spec"]["triggers"] if one["type"] == "external-push"]
        while True:
            try:
                async for answer in scaler.stream(_ref(item, trigger)):
                    if answer["result"]:
                        await self._request_scale(item, "push", is_active=True)
            except (grpc.aio.AioRpcError, KubeError):
                await asyncio.sleep(POLL_S)

    async def _poll(self, scaler: KedaClient, item: Document) -> None:
        is_active, wanted = False, 0
        try:
            for trigger in item["spec"]["triggers"]:
                ref = _ref(item, trigger)
                for spec in await scaler.metric_specs(ref):
                    for value in await scaler.metrics(ref, spec["metricName"]):
                        wanted = max(wanted, math.ceil(value["metricValueFloat"] / spec["targetSizeFloat"]))
                is_active = is_active or await scaler.is_active(ref)
        except grpc.aio.AioRpcError as error:
            await self._say(item, "False", "TriggerError", str(error.details()), is_active=False)
            return
        await self._say(item, "True", "ScaledObjectReady", "ScaledObject is ready for scaling", is_active=is_active)
        await self._request_scale(item, "poll", is_active=is_active)
        await self._hpa(item, wanted)

    async def _request_scale(self, item: Document, why: str, *, is_active: bool) -> None:
        uid, spec = item["metadata"]["uid"], item["spec"]
        present, least = await self._replicas(item), spec["minReplicaCount"]
        if is_active:
            self._last_active_s[uid] = time.monotonic()
            if present == 0:
                await self._scale(item, why, max(least, 1))
        elif present > 0 and least == 0:
            if time.monotonic() - self._last_active_s.get(uid, 0.0) > spec["cooldownPeriod"]:
                await self._scale(item, why, 0)
        elif present < least:
            await self._scale(item, why, least)

    async def _hpa(self, item: Document, wanted: int) -> None:
        """At zero replicas an HPA rests."""
        present, spec = await self._replicas(item), item["spec"]
        wanted = min(max(wanted, spec["minReplicaCount"], 1), spec["maxReplicaCount"])
        if present and wanted != present:
            await self._scale(item, "hpa", wanted)

    async def _replicas(self, item: Document) -> int:
        return int((await self._scale_of(item))["spec"].get("replicas", 0))

    async def _scale_of(self, item: Document) -> Document:
        name = item["spec"]["scaleTargetRef"]["name"]
        return await self._client.get(INFERENCE_SERVICE, self._namespace, name, subresource="scale")

    async def _scale(self, item: Document, why: str, replicas: int) -> None:
        scale = await self._scale_of(item)
        body = {**scale, "spec": {"replicas": replicas}}
        name = item["spec"]["scaleTargetRef"]["name"]
        self.scalings.append((why, replicas))
        await self._client.replace(INFERENCE_SERVICE, self._namespace, name, body, subresource="scale")

    async def _say(self, item: Document, status: str, reason: str, message: str, *, is_active: bool) -> None:
        conditions = [
            {"type": "Ready", "status": status, "reason": reason, "message": message},
            {"type": "Active", "status": str(is_active), "reason": "", "message": ""},
        ]
        # As KEDA does, something is written at every look.
        told = {"status": {"conditions": conditions, "lastActiveTime": str(time.time())}}
        await self._client.merge_patch(
            SCALED_OBJECT, self._namespace, item["metadata"]["name"], told, subresource="status"
        )

    async def _patch(self, name: str, body: Document) -> None:
        await self._client.merge_patch(SCALED_OBJECT, self._namespace, name, body)


def _ref(item: Document, trigger: Document) -> Document:
    meta = item["metadata"]
    return {"name": meta["name"], "namespace": meta["namespace"], "scalerMetadata": trigger["metadata"]}
