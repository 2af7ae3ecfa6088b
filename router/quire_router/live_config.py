"""The configuration that is in force, for whoever must act on a change of it. Swapped as a whole; what is here has been validated."""

import hashlib
import logging
from collections.abc import Callable

import msgspec

from quire_contract.router_config import RouterConfig, encode_config
from quire_contract.router_settings import RouterSettingsEntry

log = logging.getLogger("quire_router.live_config")

Follower = Callable[[RouterConfig], None]
"""Makes of a configuration what it needs, at once and without waiting for anything."""
Check = Callable[[RouterConfig, str], None]
"""RouterConfigError, which names the source, if it could not make of a configuration what it needs."""


class LiveConfig:
    """One for the process."""

    def __init__(self, check: Check | None = None) -> None:
        self._check = check
        self.settings = RouterSettingsEntry()
        self.digest = ""
        """Of the configuration without its endpoints, equal in all routers that serve the same; empty before the first one."""
        self._followers: list[Follower] = []
        self._config: RouterConfig | None = None

    def follow(self, follower: Follower) -> None:
        """Call `follower` with the configuration that is in force, if there is one, and with every one to come."""
        self._followers.append(follower)
        if self._config is not None:
            follower(self._config)

    def check(self, config: RouterConfig, source: str) -> None:
        """What the contract cannot check, before anything changes: sources keep their last good configuration. RouterConfigError."""
        if self._check is not None:
            self._check(config, source)

    def swap(self, config: RouterConfig) -> None:
        """Use `config` from now on."""
        self._config = config
        self.settings = config.settings or RouterSettingsEntry()
        for follower in self._followers:
            try:
                follower(config)
            except Exception:  # the others must not go on with another configuration than the pool's
                log.exception("a part of the router could not follow the configuration; it keeps to the one before")
        self.digest = digest_of(config)


def digest_of(config: RouterConfig) -> str:
    """16 hexadecimal digits of what `config` says, workers apart: these come and go."""
    return hashlib.sha256(encode_config(msgspec.structs.replace(config, endpoints=[]))).hexdigest()[:16]
