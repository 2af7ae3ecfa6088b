"""All that the operator knows of the cluster, and who is to be looked at when it changes.

Filled by Kopf's events, reflectors and own writes. This module must not know what is decided or written.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from quire_contract import names
from quire_contract.kube.resources import INFERENCE_SERVICE, MODEL_ROUTE, POD, TENANT, ResourceKind
from quire_operator.child_kinds import controller_of
from quire_operator.keys import ROUTERS, Key, key_of, service_key
from quire_operator.name_claims import NameClaims
from quire_operator.node_doom import NodeBook, is_disrupted
from quire_operator.router_shards import SHARDS
from quire_operator.store import KubeObject, ObjectStore
from quire_operator.tenants import TenantBook
from quire_operator.trimming import trim_object

REASON_SLEEPING = "ScaledToZero"
OWN_KINDS: tuple[ResourceKind, ...] = (INFERENCE_SERVICE, MODEL_ROUTE, TENANT)


class ClusterCache:
    """Documents of our kinds, children, pods, shards and routers; `enqueue` is told the key of whatever changed."""

    def __init__(self, enqueue: Callable[[Key], None], home: str | None = None) -> None:
        """`home` is the release's own namespace."""
        self._enqueue = enqueue
        self.claims = NameClaims()
        self.tenants = TenantBook(home)
        self.documents = ObjectStore(key_of, self._document_changed)
        self.children = ObjectStore(_owner_uid, self._child_changed)
        self.pods = ObjectStore(_pod_service, self._pod_changed)
        self.routers = ObjectStore(lambda pod: POD.kind, lambda index: self.on_routers())
        self.on_routers: Callable[[], None] = lambda: None
        """Called when a router's pod came, changed or went; for one who wants to know."""
        self.nodes = NodeBook(self._node_changed)
        self.shards = ObjectStore(lambda shard: SHARDS, lambda index: enqueue(ROUTERS))
        self._key_of_uid: dict[str, Key] = {}

    def document(self, key: Key) -> KubeObject | None:
        """One of our resources."""
        return self.documents.get(key.kind, key.namespace, key.name)

    def documents_of(self, kind: ResourceKind) -> list[KubeObject]:
        """All resources of one of our kinds, oldest first."""
        found = [document for document in self.documents.all() if document["kind"] == kind.kind]
        return sorted(found, key=age_of)

    def children_of(self, document: Mapping[str, Any]) -> tuple[KubeObject, ...]:
        """Live objects that the service controls."""
        return self.children.of(document["metadata"]["uid"])

    def pods_of(self, document: Mapping[str, Any]) -> tuple[KubeObject, ...]:
        """The service's pods."""
        return self.pods.of((document["metadata"]["namespace"], document["metadata"]["name"]))

    def doomed_of(self, document: Mapping[str, Any]) -> dict[str, str]:
        """The service's pods that are about to be lost through no fault of theirs, and why."""
        found = {}
        for pod in self.pods_of(document):
            told = self.nodes.doom((pod.get("spec") or {}).get("nodeName")) or is_disrupted(pod)
            if told:
                found[str(pod["metadata"]["name"])] = told
        return found

    def services_of(self, namespace: str) -> list[KubeObject]:
        """The services of a namespace that are not being deleted, oldest first."""
        return [
            document
            for document in self.documents_of(INFERENCE_SERVICE)
            if document["metadata"]["namespace"] == namespace and not document["metadata"].get("deletionTimestamp")
        ]

    def num_services(self, *, is_ready: bool) -> int:
        """InferenceServices whose Ready condition is True, or is not; one that sleeps at zero replicas is neither."""
        ready = [_is_ready(document) for document in self.documents_of(INFERENCE_SERVICE)]
        return sum(state is is_ready for state in ready)

    def handle(self, event: str | None, document: KubeObject) -> None:
        """A Kopf event about one of our kinds; None stands for one of the first list."""
        self.documents.handle(event or "ADDED", trim_object(document))

    def replace_documents(
        self, kind: ResourceKind, namespace: str | None, items: Iterable[KubeObject], version: str
    ) -> None:
        """All resources of one of our kinds, as a list of that version said."""
        self.documents.replace(kind.kind, namespace, (trim_object(item) for item in items), int(version))

    def _document_changed(self, index: Hashable) -> None:
        assert isinstance(index, Key)
        document = self.document(index)
        if index.kind == INFERENCE_SERVICE.kind:
            self._claims_changed(index, document)
            if document is not None:
                self._key_of_uid[document["metadata"]["uid"]] = index
        elif index.kind == TENANT.kind:
            self._tenant_changed(index, document)
        self._enqueue(index)

    def _claims_changed(self, key: Key, document: KubeObject | None) -> None:
        """A name that was freed or taken concerns other services too, the routers, and every route."""
        before = self.claims.decided()
        name = (key.namespace, key.name)
        is_gone = document is None or document["metadata"].get("deletionTimestamp")
        changed = self.claims.drop(name) if is_gone or document is None else self.claims.put(document)
        if not changed:
            return
        after = self.claims.decided()
        for other in before.conflicts.keys() | after.conflicts.keys():
            if before.conflicts.get(other) != after.conflicts.get(other):
                self._enqueue(service_key(*other))
        for route in self.documents_of(MODEL_ROUTE):
            self._enqueue(key_of(route))
        self._enqueue(ROUTERS)

    def _tenant_changed(self, key: Key, document: KubeObject | None) -> None:
        """Routers hear of it before anything else: a key may have been revoked. A key that was freed or taken concerns other tenants."""
        name = (key.namespace, key.name)
        is_gone = document is None or document["metadata"].get("deletionTimestamp")
        concerned = self.tenants.drop(name) if is_gone or document is None else self.tenants.put(document)
        if concerned is None:
            return
        self._enqueue(ROUTERS)
        for other in concerned:
            self._enqueue(Key(TENANT.kind, *other))

    def _child_changed(self, index: Hashable) -> None:
        key = self._key_of_uid.get(str(index))
        if key is not None:
            self._enqueue(key)

    def _pod_changed(self, index: Hashable) -> None:
        assert isinstance(index, tuple)
        key = service_key(*index)
        if self.document(key) is not None:
            self._enqueue(key)

    def _node_changed(self, name: str) -> None:
        for pod in self.pods.all():
            index = _pod_service(pod)
            if index is not None and (pod.get("spec") or {}).get("nodeName") == name:
                self._pod_changed(index)

    def forget(self, uid: str) -> None:
        """A service that is gone; its uid never comes back."""
        self._key_of_uid.pop(uid, None)


def age_of(document: Mapping[str, Any]) -> tuple[str, str]:
    """Sorts the oldest first."""
    return document["metadata"].get("creationTimestamp") or "", document["metadata"].get("uid") or ""


def _is_ready(document: Mapping[str, Any]) -> bool | None:
    conditions = (document.get("status") or {}).get("conditions") or ()
    ready: Mapping[str, Any] = next((c for c in conditions if c.get("type") == "Ready"), {})
    return None if ready.get("reason") == REASON_SLEEPING else ready.get("status") == "True"


def _owner_uid(child: Mapping[str, Any]) -> str | None:
    owner = controller_of(child)
    return None if owner is None else str(owner["uid"])


def _pod_service(pod: Mapping[str, Any]) -> tuple[str, str] | None:
    name = (pod["metadata"].get("labels") or {}).get(names.LABEL_SERVICE)
    return (pod["metadata"]["namespace"], name) if name else None
