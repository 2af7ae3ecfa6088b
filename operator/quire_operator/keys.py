"""What the queue holds: the name of one thing to look at. This module must not know what is done about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_contract.kube.resources import INFERENCE_SERVICE


@dataclass(frozen=True, slots=True)
class Key:
    """One resource of ours, or the routers' configuration as a whole."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


ROUTERS = Key("Routers", "", "")
"""Shards and the release's trust Secret."""


def key_of(document: Mapping[str, Any]) -> Key:
    """The key of one of our resources."""
    meta = document["metadata"]
    return Key(document["kind"], meta["namespace"], meta["name"])


def service_key(namespace: str, name: str) -> Key:
    """The key of an InferenceService."""
    return Key(INFERENCE_SERVICE.kind, namespace, name)
