"""The Secret by which routers, workers and operator know each other: made once per release, copied to where services are.

It is read by name and never listed; what others put under its name is never overwritten; nothing of it is logged. A copy that
is ours follows the release's. This module must not know services beyond their owner references.
"""

import asyncio
import base64
import binascii
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zmq

from quire_contract import names
from quire_contract.kube.client import KubeClient, KubeError, KubeObject
from quire_contract.kube.resources import SECRET
from quire_contract.telemetry import log_event
from quire_contract.trust import PUBLIC_FILE, SECRET_FILE, TOKEN_FILE, Trust
from quire_operator.api.validation import Problem
from quire_operator.manifests import parts
from quire_operator.platform import Platform

logger = logging.getLogger(__name__)

SALT_KEY = "cache-salt"
_SALT_BYTES = 32
_MAX_AGE_S = 600.0
_TOKEN = re.compile(r"[!-~]{16,}")


class MalformedTrustError(Exception):
    """A Secret of that name holds something else. The message names it and the fix, and nothing that it holds."""


class TrustSecrets:
    """Ensures the release's Secret and its copies."""

    def __init__(self, client: KubeClient, platform: Platform, clock: Callable[[], float] = time.monotonic) -> None:
        """The platform has a namespace. `clock` in seconds."""
        self._client = client
        self._platform = platform
        self._clock = clock
        self._values: dict[str, str] | None = None
        self._lock = asyncio.Lock()
        self._seen: dict[str, tuple[float, tuple[str, ...]]] = {}

    def token(self) -> str | None:
        """What routers let us in by; None until the Secret is known."""
        return None if self._values is None else _plain(self._values[TOKEN_FILE])

    async def ensure(self, namespace: str, owners: Sequence[Mapping[str, Any]]) -> Problem | None:
        """There is a Secret in `namespace`, owned by `owners`: made, adopted or left as it is.

        A problem if its name is taken by something else; KubeError if the server is in trouble or refuses.
        """
        uids = tuple(sorted(owner["uid"] for owner in owners))
        if self._is_fresh(namespace, uids):
            return None
        async with self._lock:
            if self._is_fresh(namespace, uids):
                return None
            try:
                if namespace == self._platform.namespace:
                    await self._ensure_own(owners)
                else:
                    await self._ensure_copy(namespace, owners)
            except MalformedTrustError as error:
                return Problem(path=f"Secret/{self._platform.trust_secret}", message=str(error))
            self._seen[namespace] = (self._clock(), uids)
        return None

    def _is_fresh(self, namespace: str, uids: tuple[str, ...]) -> bool:
        seen_s, seen_uids = self._seen.get(namespace, (float("-inf"), ()))
        return seen_uids == uids and self._clock() - seen_s < _MAX_AGE_S

    async def _ensure_own(self, owners: Sequence[Mapping[str, Any]]) -> None:
        assert self._platform.namespace is not None
        live = await self._get(self._platform.namespace)
        if live is None:
            live = await self._create(self._platform.namespace, _new_values(), owners)
        self._values = self._checked(live)
        await self._adopt(live, owners, self._values)

    async def _ensure_copy(self, namespace: str, owners: Sequence[Mapping[str, Any]]) -> None:
        if self._values is None:
            assert self._platform.namespace is not None
            release = await self._get(self._platform.namespace)
            if release is None:
                raise KubeError(404, "NotFound", "the release's trust Secret is not there yet")
            self._values = self._checked(release)
        live = await self._get(namespace)
        if live is None:
            live = await self._create(namespace, self._values, owners)
        is_ours = (live["metadata"].get("labels") or {}).get(names.LABEL_MANAGED_BY) == parts.MANAGER
        if not is_ours and self._checked(live) != self._values:
            raise MalformedTrustError(self._complaint(live, "holds other credentials than the release's"))
        await self._adopt(live, owners, self._values)

    async def _adopt(self, live: KubeObject, owners: Sequence[Mapping[str, Any]], values: Mapping[str, str]) -> None:
        """Bring owners and, in a copy that is ours, the values in line. What others made keeps no owners of ours."""
        meta = live["metadata"]
        if (meta.get("labels") or {}).get(names.LABEL_MANAGED_BY) != parts.MANAGER:
            return
        wanted = sorted((dict(owner) for owner in owners), key=lambda owner: str(owner["uid"]))
        present = sorted(meta.get("ownerReferences") or [], key=lambda owner: str(owner["uid"]))
        patch: dict[str, Any] = {}
        if wanted and [owner["uid"] for owner in wanted] != [owner["uid"] for owner in present]:
            patch["metadata"] = {"ownerReferences": wanted, "resourceVersion": meta["resourceVersion"]}
        if live.get("data") != values:
            patch["data"] = dict(values)
            log_event(logger, logging.WARNING, "trust copy renewed; pods need a restart", namespace=meta["namespace"])
        if patch:
            await self._client.merge_patch(SECRET, meta["namespace"], meta["name"], patch, field_manager=parts.MANAGER)

    async def _get(self, namespace: str) -> KubeObject | None:
        try:
            return await self._client.get(SECRET, namespace, self._platform.trust_secret)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def _create(
        self, namespace: str, values: Mapping[str, str], owners: Sequence[Mapping[str, Any]]
    ) -> KubeObject:
        """Made, unless another was quicker: then theirs counts."""
        meta = parts.metadata(
            self._platform.trust_secret, namespace, parts.common_labels(self._platform.release, "trust")
        )
        body = {
            "apiVersion": SECRET.api_version,
            "kind": SECRET.kind,
            "metadata": {**meta, "ownerReferences": [dict(owner) for owner in owners]},
            "type": "Opaque",
            "data": dict(values),
        }
        try:
            made = await self._client.create(SECRET, namespace, body, field_manager=parts.MANAGER)
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            return await self._client.get(SECRET, namespace, self._platform.trust_secret)
        log_event(logger, logging.INFO, "trust made", namespace=namespace, name=self._platform.trust_secret)
        return made

    def _checked(self, live: Mapping[str, Any]) -> dict[str, str]:
        data = live.get("data") or {}
        plain = {key: _plain(data.get(key)) for key in (TOKEN_FILE, PUBLIC_FILE, SECRET_FILE, SALT_KEY)}
        missing = [key for key, value in plain.items() if not value]
        if missing:
            raise MalformedTrustError(self._complaint(live, f"lacks {', '.join(missing)}"))
        if not _TOKEN.fullmatch(plain[TOKEN_FILE] or "") or not _is_pair(plain[PUBLIC_FILE], plain[SECRET_FILE]):
            raise MalformedTrustError(self._complaint(live, f"holds a {TOKEN_FILE} or CURVE keys that cannot be used"))
        return {key: data[key] for key in plain}

    def _complaint(self, live: Mapping[str, Any], what: str) -> str:
        name = live["metadata"]["name"]
        return (
            f"the Secret {name!r} in {live['metadata']['namespace']} {what}; delete it and the operator makes it anew"
        )


def _new_values() -> dict[str, str]:
    trust = Trust.generate()
    plain = {
        TOKEN_FILE: trust.token.encode(),
        PUBLIC_FILE: trust.curve_public,
        SECRET_FILE: trust.curve_secret,
        SALT_KEY: secrets.token_hex(_SALT_BYTES).encode(),
    }
    return {key: base64.b64encode(value).decode() for key, value in plain.items()}


def _plain(encoded: str | None) -> str | None:
    try:
        return base64.b64decode(encoded or "", validate=True).decode("ascii").strip()
    except (binascii.Error, ValueError):
        return None


def _is_pair(public: str | None, secret: str | None) -> bool:
    try:
        return bool(public) and zmq.curve_public((secret or "").encode()) == (public or "").encode()
    except (zmq.ZMQError, ValueError):
        return False
