"""Where the routers of a release find what they share."""

import dataclasses

from quire_router.config import RouterSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedStore:
    """The Redis that the routers of a release share."""

    url: str = dataclasses.field(repr=False)
    password: str | None = dataclasses.field(repr=False)
    prefix: str
    """Of all keys: releases may share one Redis."""
    timeout_s: float
    """Longest wait of a request for it."""


def shared_store(settings: RouterSettings, namespace: str) -> SharedStore | None:
    """The Redis of the release's routers, if there is one; `namespace` is the router's own."""
    if not settings.redis_url:
        return None
    home = settings.release_namespace or namespace
    prefix = f"quire:{home}/{settings.release}:" if settings.release else "quire:"
    return SharedStore(
        url=settings.redis_url,
        password=settings.redis_password or None,
        prefix=prefix,
        timeout_s=settings.redis_timeout_s,
    )
