"""Writes .status, only where it differs, and never twice the same. This module must not know what a status means."""

from collections.abc import Mapping
from typing import Any

from quire_contract.kube.client import KubeClient, KubeError, KubeObject
from quire_contract.kube.resources import ResourceKind
from quire_operator.comparison import applied_hash
from quire_operator.manifests.parts import MANAGER
from quire_operator.store import ObjectStore
from quire_operator.trimming import trim_object

_CONDITIONS = "conditions"


class StatusWriter:
    """Server-side apply on /status. `documents` learns of every write."""

    def __init__(self, client: KubeClient, documents: ObjectStore) -> None:
        self._client = client
        self._documents = documents
        self._written: dict[str, tuple[str, str]] = {}

    async def write(
        self, kind: ResourceKind, document: Mapping[str, Any], status: Mapping[str, Any]
    ) -> KubeObject | None:
        """Make `status` the document's. None if it is already, or the document is gone.

        A server whose CRD lacks a field drops it: what was written onto a version of the document is not written again.
        """
        if _comparable(status) == _comparable(document.get("status") or {}):
            return None
        meta = document["metadata"]
        digest = applied_hash(status)
        if self._written.get(meta["uid"]) == (digest, meta["resourceVersion"]):
            return None
        body = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "status": status,
        }
        try:
            written = await self._client.apply(
                kind, meta["namespace"], meta["name"], body, field_manager=MANAGER, subresource="status"
            )
        except KubeError as error:
            if error.status == 404 or (error.status == 409 and "uid" in error.message.lower()):  # deleted, or made anew
                return None
            raise
        self._written[meta["uid"]] = (digest, written["metadata"]["resourceVersion"])
        self._documents.put(trim_object(written))
        return written

    def forget(self, uid: str) -> None:
        """The document is gone."""
        self._written.pop(uid, None)


def _comparable(value: Any) -> Any:
    """Without nulls, and conditions by type: the server keeps an order of its own."""
    if isinstance(value, Mapping):
        plain = {key: _comparable(item) for key, item in value.items() if item is not None}
        if isinstance(plain.get(_CONDITIONS), list):
            plain[_CONDITIONS] = sorted(plain[_CONDITIONS], key=lambda condition: str(condition.get("type")))
        return plain
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    return value
