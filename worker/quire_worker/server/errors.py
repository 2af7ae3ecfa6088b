"""Refusals that a worker adds to the contract's: with the reason a router reads, and for what the engine says."""

import re

from quire_contract import names
from quire_contract.openai.errors import (
    CODE_CONTEXT_LENGTH,
    CODE_DRAINING,
    CODE_ENGINE_DEAD,
    CODE_INVALID_VALUE,
    CODE_NOT_READY,
    CODE_QUEUE_TIMEOUT,
    TYPE_SERVER,
    ApiError,
    deadline_exceeded,
    internal,
    invalid,
    queue_full,
    unavailable,
)
from quire_worker.engine.messages import Rejected

CODE_NOT_FINITE = "output_not_finite"
CODE_SLOW_READER = "slow_reader"
CODE_NO_TOKEN = "no_token_allowed"  # noqa: S105 - a code
_LINE = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?")
"""llguidance's place in a grammar: line and column."""


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


def asleep() -> ApiError:
    return refused(names.REASON_ASLEEP, "This worker sleeps and takes no requests until it is woken; try again.")


def cannot_wake(problem: str) -> ApiError:
    return refused(names.REASON_ASLEEP, f"This worker cannot be woken: {problem}.")


def engine_dead(reason: str) -> ApiError:
    return refused(CODE_ENGINE_DEAD, f"The engine is gone: {reason}.")


def unhealthy(problem: str) -> ApiError:
    """503 for what only a restart mends."""
    return refused(CODE_ENGINE_DEAD, f"This worker cannot go on: {problem}.")


def tokenising_full() -> ApiError:
    """429: too many prompts wait to be tokenised."""
    return _with_reason(queue_full("Too many requests are waiting to be tokenised; try again."))


def of_rejected(rejected: Rejected, grammar_field: str = "") -> ApiError:
    """What a refusal by the engine means over HTTP; `grammar_field` is where the request's grammar came from."""
    if rejected.reason == "grammar":
        return of_grammar(grammar_field, rejected.message)
    if rejected.reason == "queue_full":
        return _with_reason(queue_full(rejected.message, rejected.retry_after_s))
    code = CODE_CONTEXT_LENGTH if rejected.reason == "too_long" else CODE_INVALID_VALUE
    return ApiError(400, rejected.message, code=code)


def queue_timed_out(waited_s: float, retry_after_s: int) -> ApiError:
    """503: nothing was done for the request, so it may be sent again."""
    message = f"The request waited for {waited_s:.1f} s and was not begun in the time it may wait; try again later."
    error = unavailable(message, CODE_QUEUE_TIMEOUT, retry_after_s)
    error.headers[names.HEADER_REASON] = names.REASON_QUEUE_TIMEOUT
    return error


def deadline_passed(after_s: float, state: str) -> ApiError:
    """504: `state` says whether it was waiting or running."""
    error = deadline_exceeded(
        f"The request was {state} when its time was over, after {after_s:.1f} s; allow more with timeout_s."
    )
    error.headers[names.HEADER_REASON] = names.REASON_DEADLINE
    return error


def of_grammar(field: str, message: str) -> ApiError:
    """400: the grammar that `field` asks for cannot be obeyed. Lines are told only of a grammar that the client wrote itself."""
    return invalid(field, message if field.endswith(".grammar") else _LINE.sub("", message))


def makes_no_text(model: str, task: str, path: str) -> ApiError:
    """400: a model that embeds or scores was asked to write."""
    what, instead = (
        ("scores pairs of texts", f"{names.PATH_RERANK} or {names.PATH_SCORE}")
        if task == "score"
        else ("makes embeddings", names.PATH_EMBEDDINGS)
    )
    return invalid("model", f"{model} {what} and generates no text, which {path} asks for; use POST {instead}")


def makes_no_embeddings(model: str, path: str) -> ApiError:
    """400: a model that writes was asked to embed or score."""
    return invalid(
        "model",
        f"{model} generates text and makes no embeddings, which {path} asks for; use POST {names.PATH_CHAT}, or serve it "
        "with --task embed",
    )


def step_failed(request_id: str) -> ApiError:
    """500: the engine failed on this very request. Its own words are for the log only."""
    error = internal(f"The model failed on this request; the worker's log has the reason under {request_id}.")
    assert error.type == TYPE_SERVER
    return error


def not_finite(dtype: str) -> ApiError:
    """500: the model's numbers are beyond the dtype, or its weights are damaged. No other worker with this model would do better."""
    hint = (
        "float16 overflows in many models that were trained in bfloat16: serve it with --dtype bfloat16 or float32."
        if dtype == "float16"
        else "The checkpoint may be damaged, or its quantisation or KV scales not fit it."
    )
    message = f"The model's output is not finite (NaN or infinity, computed in {dtype or 'an unknown dtype'}). {hint}"
    return ApiError(500, message, type=TYPE_SERVER, code=CODE_NOT_FINITE)


def no_token() -> ApiError:
    """400: the request ruled out every token."""
    return ApiError(
        400,
        "No token may come here: allowed_token_ids, bad_words, min_tokens and what else constrains the output leave none.",
        code=CODE_NO_TOKEN,
    )


def slow_reader() -> ApiError:
    """408: it stands in the stream, behind what had been sent."""
    message = (
        "The client took so little of this answer that too much of it waited (--max-unread-bytes); it ends here. Read "
        "streams as they come, or ask for fewer choices, a smaller max_tokens or fewer logprobs."
    )
    return ApiError(408, message, code=CODE_SLOW_READER)


def _with_reason(error: ApiError) -> ApiError:
    error.headers[names.HEADER_REASON] = names.REASON_QUEUE_FULL
    return error


def too_many_logprobs(most: int) -> ApiError:
    """400 for an answer that would be gathered in memory for as long as it is made."""
    return invalid(
        "logprobs",
        f"the answer has more than {most} log-probabilities of output (tokens of all choices x (k + 1)), too many for one that is not "
        "streamed; send stream: true, or ask for fewer choices, a smaller max_tokens or a smaller k",
    )
