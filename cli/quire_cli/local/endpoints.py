"""The router's view of who is ready: the router configuration file, replaced as a whole at every change.

This module must not know processes.
"""

from collections.abc import Sequence
from pathlib import Path

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config


class EndpointFile:
    """Owns the file. Models are always in it; an endpoint only while it is ready."""

    def __init__(self, path: Path, models: Sequence[ModelEntry]) -> None:
        self._path = path
        self._models = list(models)
        self._endpoints: dict[str, EndpointEntry] = {}
        self._write()

    def add(self, entry: EndpointEntry) -> None:
        """From now on the router may send requests there."""
        if self._endpoints.get(entry.id) != entry:
            self._endpoints[entry.id] = entry
            self._write()

    def remove(self, endpoint_id: str) -> None:
        """From now on the router must not."""
        if self._endpoints.pop(endpoint_id, None) is not None:
            self._write()

    def _write(self) -> None:
        endpoints = sorted(self._endpoints.values(), key=lambda entry: entry.id)
        write_config(self._path, RouterConfig(models=self._models, endpoints=endpoints))
