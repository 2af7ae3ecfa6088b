"""Makes a service's children what they should be: applies what differs, in order, and removes what is no longer wanted.

An object that already is as wanted is not written, across restarts too: its annotation holds the digest of what was applied, and
its fields are compared. What the server refuses is reported, the rest goes on. This module must not know why objects are wanted.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire_contract import names
from quire_contract.kube.client import KubeClient, KubeError, KubeObject
from quire_contract.kube.resources import INFERENCE_SERVICE, PVC, ResourceKind
from quire_contract.telemetry import log_event
from quire_operator.api.validation import Problem
from quire_operator.child_kinds import controller_of, kind_of
from quire_operator.comparison import applied_hash, holds, with_hash
from quire_operator.manifests.parts import MANAGER
from quire_operator.metrics import Metrics
from quire_operator.store import ObjectStore
from quire_operator.trimming import trim_object
from quire_operator.work_queue import TemporaryError

logger = logging.getLogger(__name__)

_TROUBLE = frozenset({0, 401, 429, 502, 503, 504})
"""The server's own condition: everything would fail, so nothing more is tried now."""
_CLAIM_CHECK_S = 600.0
_GONE_SOON_S = 0.5
_TERMINATING = "being terminated"


class Applier:
    """Writes children. One for the process; calls for different services may run at once."""

    def __init__(
        self,
        client: KubeClient,
        children: ObjectStore,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`children` holds what is watched and learns of every write here. `clock` in seconds."""
        self._client = client
        self._children = children
        self._metrics = metrics
        self._clock = clock
        self._applied: dict[tuple[str, str, str], tuple[str, str, Any]] = {}
        self._claims_seen_s: dict[tuple[str, str], float] = {}

    async def carry_out(
        self, service: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]]
    ) -> tuple[Problem, ...]:
        """Make the children of `service` those of `manifests`. What the server refused; KubeError if it is in trouble itself.

        Nothing is removed unless all of `manifests` are there: an old revision's pods may still be needed.
        """
        problems: list[Problem] = []
        is_checked = False
        for manifest in manifests:
            kind = kind_of(manifest)
            try:
                if kind is PVC:
                    await self._claim(manifest)
                elif not self._is_applied(service, manifest):
                    is_checked = is_checked or await self._check_exists(service)
                    await self._apply(service, kind, manifest)
            except KubeError as error:
                what = f"{manifest['kind']}/{manifest['metadata']['name']}"
                problems.append(refusal(what, error))
        if not problems:
            await self._prune(service, manifests)
        return tuple(problems)

    def forget(self, namespace: str, name: str) -> None:
        """The service is gone; so are its children soon."""
        for known in [key for key in self._applied if key[1] == namespace and key[2].startswith(name)]:
            del self._applied[known]

    def _is_applied(self, service: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
        live = self._live(manifest)
        if live is None or _owner_uid(live) != service["metadata"]["uid"]:
            return False
        digest = applied_hash(manifest)
        if (live["metadata"].get("annotations") or {}).get(names.ANNOTATION_APPLIED) != digest:
            return False
        meta_holds = holds(live["metadata"], manifest["metadata"])
        if meta_holds and self._applied.get(_key(manifest)) == (live["metadata"]["uid"], digest, _state(live)):
            self._metrics.skipped_applies.inc()
            return True
        if holds(live, manifest):
            self._applied[_key(manifest)] = (live["metadata"]["uid"], digest, _state(live))
            self._metrics.skipped_applies.inc()
            return True
        return False

    async def _apply(self, service: Mapping[str, Any], kind: ResourceKind, manifest: Mapping[str, Any]) -> None:
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        live = self._live(manifest) or await self._unwatched(kind, namespace, name)
        if live is not None:
            _refuse_foreign(service, live)
        written = await self._client.apply(kind, namespace, name, with_hash(manifest), field_manager=MANAGER)
        self._metrics.applies.labels(kind.kind).inc()
        log_event(logger, logging.INFO, "applied", kind=kind.kind, namespace=namespace, name=name, is_new=live is None)
        trim_object(written)
        self._applied[_key(manifest)] = (written["metadata"]["uid"], applied_hash(manifest), _state(written))
        self._children.put(written)

    async def _unwatched(self, kind: ResourceKind, namespace: str, name: str) -> KubeObject | None:
        """An object of that name that we do not watch, for it lacks our label, or that a watch has not yet told of."""
        try:
            return await self._client.get(kind, namespace, name)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def _check_exists(self, service: Mapping[str, Any]) -> bool:
        """Children of a service that has just been deleted would be made and collected in turns."""
        meta = service["metadata"]
        try:
            live = await self._client.get(INFERENCE_SERVICE, meta["namespace"], meta["name"])
        except KubeError as error:
            if error.status != 404:
                raise
            live = {"metadata": {}}
        if live["metadata"].get("uid") != meta["uid"] or live["metadata"].get("deletionTimestamp"):
            raise ServiceGoneError(meta["namespace"], meta["name"])
        return True

    async def _prune(self, service: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]]) -> None:
        wanted = {_key(manifest) for manifest in manifests}
        owned = self._children.of(service["metadata"]["uid"])
        surplus = [
            child for child in owned if _key(child) not in wanted and not child["metadata"].get("deletionTimestamp")
        ]
        await asyncio.gather(*(self._delete(child) for child in surplus))

    async def _delete(self, child: KubeObject) -> None:
        kind, meta = kind_of(child), child["metadata"]
        try:
            await self._client.delete(kind, meta["namespace"], meta["name"], uid=meta["uid"])
        except KubeError as error:
            if error.status not in (404, 409):  # gone, or already another one
                raise
            if error.status == 404:  # its kind may have gone with it, and its watch
                self._children.forget(kind.kind, meta["namespace"], meta["name"])
        self._applied.pop(_key(child), None)
        self._metrics.prunes.labels(kind.kind).inc()
        log_event(logger, logging.INFO, "removed", kind=kind.kind, namespace=meta["namespace"], name=meta["name"])

    async def _claim(self, manifest: Mapping[str, Any]) -> None:
        """A claim is made if it is missing, and otherwise left as it is, whoever made it."""
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        if self._clock() - self._claims_seen_s.get((namespace, name), float("-inf")) < _CLAIM_CHECK_S:
            return
        if await self._unwatched(PVC, namespace, name) is None:
            try:
                await self._client.create(PVC, namespace, manifest, field_manager=MANAGER)
            except KubeError as error:
                if error.reason != "AlreadyExists":
                    raise
            self._metrics.applies.labels(PVC.kind).inc()
        self._claims_seen_s[namespace, name] = self._clock()

    def _live(self, manifest: Mapping[str, Any]) -> KubeObject | None:
        return self._children.get(*_key(manifest))


class ServiceGoneError(Exception):
    """The service was deleted, and our watch has not said so yet."""

    def __init__(self, namespace: str, name: str) -> None:
        super().__init__(f"{namespace}/{name} is gone")
        self.namespace = namespace
        self.name = name


def _refuse_foreign(service: Mapping[str, Any], live: Mapping[str, Any]) -> None:
    """What another made under a name that we need is never taken over; what our own left behind is waited for or adopted."""
    owner = controller_of(live)
    meta = service["metadata"]
    what = f"{live['kind']} {live['metadata']['name']!r} exists already"
    if live["metadata"].get("deletionTimestamp"):
        raise TemporaryError(f"{what} and is being deleted", _GONE_SOON_S)
    if owner is None:
        if (live["metadata"].get("labels") or {}).get(names.LABEL_MANAGED_BY) != MANAGER:
            raise KubeError(409, "Conflict", f"{what} and is not Quire's; delete it, or rename the InferenceService")
    elif owner["uid"] != meta["uid"]:
        if owner.get("kind") == INFERENCE_SERVICE.kind and owner.get("name") == meta["name"]:
            raise TemporaryError(f"{what} for an earlier service of this name", _GONE_SOON_S)
        rival = f"{owner.get('kind')} {owner.get('name')!r}"
        raise KubeError(409, "Conflict", f"{what} and belongs to {rival}; delete it, or rename the InferenceService")


def refusal(what: str, error: KubeError) -> Problem:
    """The server's refusal for people; its own trouble, and the end of the namespace, are nobody's to mend and are raised."""
    if error.status in _TROUBLE:
        raise error
    if _TERMINATING in error.message:
        raise TemporaryError("the namespace is being deleted", 10.0)
    return Problem(path=what, message=error.message or error.reason)


def _key(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    return manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def _state(live: Mapping[str, Any]) -> Any:
    """What changes when somebody changes the object: its generation, or its version where the kind counts no generations."""
    meta = live["metadata"]
    return ("generation", meta["generation"]) if meta.get("generation") else ("version", meta.get("resourceVersion"))


def _owner_uid(live: Mapping[str, Any]) -> str | None:
    owner = controller_of(live)
    return None if owner is None else str(owner["uid"])
