"""The last known state of objects of some kinds, by name and by one index. Filled by watches and by our own writes.

What is older than what is known is ignored, so that a late watch event never undoes what an own write's answer told. This module
must not know what the objects mean.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

KubeObject = dict[str, Any]
Name = tuple[str, str, str]

_MAX_TOMBSTONES = 4096


class ObjectStore:
    """Objects by (kind, namespace, name) and by what `index` says; `on_change` is told the index of whatever changed."""

    def __init__(self, index: Callable[[KubeObject], Hashable | None], on_change: Callable[[Hashable], None]) -> None:
        """Objects whose index is None are kept by name only, and nobody is told."""
        self._index = index
        self._on_change = on_change
        self._objects: dict[Name, KubeObject] = {}
        self._indexed: dict[Hashable, dict[Name, KubeObject]] = {}
        self._deleted: dict[Name, int] = {}

    def get(self, kind: str, namespace: str, name: str) -> KubeObject | None:
        """The object, if it is known."""
        return self._objects.get((kind, namespace, name))

    def of(self, index: Hashable) -> tuple[KubeObject, ...]:
        """All objects of one index, by name."""
        found = self._indexed.get(index, {})
        return tuple(found[name] for name in sorted(found))

    def all(self) -> Iterable[KubeObject]:
        """Every object."""
        return self._objects.values()

    def replace(
        self, kind: str, namespace: str | None, items: Iterable[KubeObject], version: int | None = None
    ) -> None:
        """`items` are all objects of `kind` (in `namespace`, unless that is None): the others are gone.

        Unless they are newer than `version`, the list's own.
        """
        listed = {name_of(item): item for item in items}
        for name in [n for n in self._objects if n[0] == kind and namespace in (None, n[1]) and n not in listed]:
            if version is None or version_of(self._objects[name]) <= version:
                self._remove(name)
        for item in listed.values():
            self.put(item)

    def handle(self, event: str, item: KubeObject) -> None:
        """A watch event: ADDED, MODIFIED or DELETED."""
        if event != "DELETED":
            self.put(item)
            return
        name = name_of(item)
        self._bury(name, version_of(item))
        known = self._objects.get(name)
        if known is not None and version_of(known) <= version_of(item):
            self._remove(name)

    def put(self, item: KubeObject) -> None:
        """Keep `item` unless something newer is known."""
        name = name_of(item)
        known = self._objects.get(name)
        if version_of(item) <= max(self._deleted.get(name, -1), -1 if known is None else version_of(known)):
            return
        before = None if known is None else self._index(known)
        after = self._index(item)
        if before is not None and before != after:
            self._unindex(before, name)
            self._on_change(before)
        self._objects[name] = item
        if after is not None:
            self._indexed.setdefault(after, {})[name] = item
            self._on_change(after)

    def forget(self, kind: str, namespace: str, name: str) -> None:
        """The server says that there is no such object."""
        if (kind, namespace, name) in self._objects:
            self._remove((kind, namespace, name))

    def _remove(self, name: Name) -> None:
        item = self._objects.pop(name)
        index = self._index(item)
        if index is not None:
            self._unindex(index, name)
            self._on_change(index)

    def _unindex(self, index: Hashable, name: Name) -> None:
        objects = self._indexed[index]
        objects.pop(name, None)
        if not objects:
            del self._indexed[index]

    def _bury(self, name: Name, version: int) -> None:
        self._deleted[name] = version
        while len(self._deleted) > _MAX_TOMBSTONES:
            self._deleted.pop(next(iter(self._deleted)))


def name_of(item: KubeObject) -> Name:
    """(kind, namespace, name)."""
    meta = item["metadata"]
    return item["kind"], meta.get("namespace") or "", meta["name"]


def version_of(item: KubeObject) -> int:
    """The resource version, which the API server counts up."""
    text = item["metadata"].get("resourceVersion") or "0"
    return int(text) if text.isdigit() else 0
