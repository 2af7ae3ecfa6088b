"""The router's configuration file: what is served and by whom, who is ready; replaced as a whole at every change.

This module must not know processes, or the files that tenants and routes are written in.
"""

from pathlib import Path

import msgspec

from quire_contract.router_config import EndpointEntry, RouterConfig, write_config


class EndpointFile:
    """Owns the file. What is served is always in it; an endpoint only while it is ready."""

    def __init__(self, path: Path, served: RouterConfig) -> None:
        """`served` has no endpoints."""
        self._path = path
        self._served = served
        self._endpoints: dict[str, EndpointEntry] = {}
        self._write()

    def serve(self, served: RouterConfig) -> bool:
        """From now on names, routes, tenants and settings are these. Whether that changes anything."""
        if served == self._served:
            return False
        self._served = served
        self._write()
        return True

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
        write_config(self._path, msgspec.structs.replace(self._served, endpoints=endpoints))
