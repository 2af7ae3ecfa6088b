"""What a client is told that waited in vain, or may not wait. Pure functions.

    429 queue_full      as many wait as may, or somebody of a higher priority or with a smaller share of the queue took the place
    429 queue_timeout   the workers stayed full for as long as a request may wait
    503 no_endpoint     no worker of the model became ready for as long as a request may wait for one
    503 draining        the router ends, and no worker is ready
    504 deadline        the request's own time is over
    404                 the model was taken out of the configuration while the request waited for it

Each but the last two says by Retry-After when another try is worth it, and by x-quire-reason why.
"""

import math
from collections.abc import Iterable

from quire_contract import names
from quire_contract.openai.errors import (
    CODE_QUEUE_FULL,
    CODE_QUEUE_TIMEOUT,
    TYPE_RATE_LIMIT,
    ApiError,
    deadline_exceeded,
    unavailable,
)

MIN_RETRY_S = 1
MAX_RETRY_S = 300
NO_ENDPOINT_RETRY_S = 10
"""Who has waited for a worker in vain need not hurry: it is asked for while nobody waits, too."""


class NobodyLeftError(ApiError):
    """503: no worker is left that may answer, and nothing was sent to the client: who has time may wait for the next one."""

    def __init__(self, message: str) -> None:
        plain = unavailable(message)
        super().__init__(plain.status, plain.message, type=plain.type, code=plain.code, headers=plain.headers)


def retry_after_s(queued: int, rate_per_s: float | None, unknown_s: float) -> int:
    """Seconds until the `queued` requests ahead will have started, as fast as they start now; `unknown_s` if none has started yet."""
    seconds = unknown_s if not rate_per_s else (queued + 1) / rate_per_s
    return min(MAX_RETRY_S, max(MIN_RETRY_S, math.ceil(seconds)))


def queue_is_full(model: str, retry_s: int) -> ApiError:
    """429 for a newcomer."""
    return _capacity(
        f"As many requests wait for the model `{model}` as may, or hold as much memory.", CODE_QUEUE_FULL, retry_s
    )


def tenants_share_is_full(model: str, retry_s: int) -> ApiError:
    """429 for a newcomer whose tenant has its share of the waiting requests."""
    return _capacity(
        f"As many requests of this tenant wait as may, or hold as much memory; this one is for the model `{model}`.",
        CODE_QUEUE_FULL,
        retry_s,
    )


def memory_is_full(model: str, retry_s: int) -> ApiError:
    """429 for a newcomer whose body cannot be kept."""
    return _capacity(
        f"The requests that wait hold as much memory as they may; this one is for the model `{model}`.",
        CODE_QUEUE_FULL,
        retry_s,
    )


def displaced(model: str, retry_s: int) -> ApiError:
    """429 for one that waited."""
    return _capacity(
        f"The queue for the model `{model}` is full, and another request has a better claim to the place.",
        CODE_QUEUE_FULL,
        retry_s,
    )


def waited_too_long(model: str, waited_s: float, retry_s: int) -> ApiError:
    """429: the workers are full."""
    return _capacity(
        f"The workers of the model `{model}` are full; the request waited {waited_s:.1f} s.",
        CODE_QUEUE_TIMEOUT,
        retry_s,
    )


def no_endpoint(model: str, waited_s: float) -> ApiError:
    """503: there is no worker."""
    return unavailable(
        f"The model `{model}` has no ready worker; the request waited {waited_s:.1f} s for one.",
        names.REASON_NO_ENDPOINT,
        NO_ENDPOINT_RETRY_S,
    )


def router_ends(model: str) -> ApiError:
    """503: another router may hold the request."""
    return unavailable(
        f"The router is shutting down, and the model `{model}` has no ready worker.", names.REASON_DRAINING
    )


def out_of_time(waited_s: float) -> ApiError:
    """504: of no use any more."""
    return deadline_exceeded(f"The request's time was over after it had waited {waited_s:.1f} s for a worker.")


def _capacity(message: str, reason: str, retry_s: int) -> ApiError:
    headers = {"Retry-After": str(retry_s), names.HEADER_REASON: reason}
    return ApiError(429, message, type=TYPE_RATE_LIMIT, code=reason, headers=headers)


def soonest(times_s: Iterable[int]) -> int:
    """Of several queues, the one that will be through first."""
    return min(times_s, default=MAX_RETRY_S)
