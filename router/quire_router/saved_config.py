"""The configuration that was last in force, in a file of the router's own: what it starts with while the API server is away.

It holds digests of keys and workers' addresses: only the router's user may read it. Written beside and renamed, at most once a second,
in a thread. A file that cannot be read or written costs nothing but itself. This module must not know where configurations come from.
"""

import asyncio
import logging
import os
from pathlib import Path

import msgspec

from quire_contract.router_config import RouterConfig, RouterConfigError, decode_config
from quire_contract.telemetry import Trouble, log_event

log = logging.getLogger("quire_router.saved_config")

FILE = "router-config.json"
SAVE_EVERY_S = 1.0
MAX_BYTES = 256 * 1024 * 1024
_OWNER_ONLY = 0o600


class SavedConfig:
    """The file in one folder. `run` writes what `keep` was last given."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._wanted: RouterConfig | None = None
        self._asked = asyncio.Event()
        self._trouble = Trouble()

    def load(self) -> RouterConfig | None:
        """The saved configuration; None if there is none that can be used."""
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise RouterConfigError(f"{self._path}: is larger than {MAX_BYTES} bytes")
            return decode_config(self._path.read_bytes(), str(self._path))
        except FileNotFoundError:
            return None
        except (OSError, RouterConfigError) as error:
            log_event(log, logging.WARNING, "saved_configuration_unusable", problem=str(error))
            return None

    def keep(self, config: RouterConfig) -> None:
        """Let `run` save it."""
        self._wanted = config
        self._asked.set()

    async def run(self) -> None:
        """Save until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            assert self._wanted is not None, "asked by keep"
            try:
                await asyncio.to_thread(_write, self._path, self._wanted)
                self._trouble.is_over()
            except OSError as error:
                if self._trouble.is_news(str(error)):
                    log_event(log, logging.WARNING, "configuration_not_saved", problem=str(error))
            await asyncio.sleep(SAVE_EVERY_S)


def _write(path: Path, config: RouterConfig) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY), "wb") as file:
        file.write(msgspec.json.encode(config))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
