"""Refusals that a worker adds to the contract's: with the reason a router reads, and for what the engine says."""

from quire_contract import names
from quire_contract.openai.errors import (
    CODE_CONTEXT_LENGTH,
    CODE_DRAINING,
    CODE_INVALID_VALUE,
    CODE_NOT_READY,
    TYPE_SERVER,
    ApiError,
    internal,
    queue_full,
    unavailable,
)
from quire_worker.engine.messages import Rejected

CODE_ENGINE_DEAD = "engine_dead"


def refused(code: str, message: str) -> ApiError:
    """503 with `x-quire-reason`: draining, not_ready or engine_dead. Routers try elsewhere."""
    error = unavailable(message, code)
    error.headers[names.HEADER_REASON] = code
    return error


def draining() -> ApiError:
    return refused(CODE_DRAINING, "This worker is draining and takes no new requests; try again.")


def drained() -> ApiError:
    """For requests that outlived the drain."""
    return refused(CODE_DRAINING, "This worker had to stop before the answer was complete; try again.")


def not_ready(detail: str) -> ApiError:
    return refused(CODE_NOT_READY, f"This worker is not ready yet: {detail}.")


def engine_dead(reason: str) -> ApiError:
    return refused(CODE_ENGINE_DEAD, f"The engine is gone: {reason}.")


def unhealthy(problem: str) -> ApiError:
    """503 for what only a restart mends."""
    return refused(CODE_ENGINE_DEAD, f"This worker cannot go on: {problem}.")


def tokenising_full() -> ApiError:
    """429: too many prompts wait to be tokenised."""
    return _with_reason(queue_full("Too many requests are waiting to be tokenised; try again."))


def of_rejected(rejected: Rejected) -> ApiError:
    """What a refusal by the engine means over HTTP."""
    if rejected.reason == "queue_full":
        return _with_reason(queue_full(rejected.message))
    code = CODE_CONTEXT_LENGTH if rejected.reason == "too_long" else CODE_INVALID_VALUE
    return ApiError(400, rejected.message, code=code)


def step_failed(request_id: str) -> ApiError:
    """500: the engine failed on this very request. Its own words are for the log only."""
    error = internal(f"The model failed on this request; the worker's log has the reason under {request_id}.")
    assert error.type == TYPE_SERVER
    return error


def _with_reason(error: ApiError) -> ApiError:
    error.headers[names.HEADER_REASON] = names.REASON_QUEUE_FULL
    return error
