"""The error body of every refusal, and the exception that carries it.

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

As OpenAI's clients expect: `code` is a word or null, never the HTTP status. `type` is one of the TYPE_ constants, `param` the field's path
as in "messages[0].role". Errors inside a stream have the same body, as the data of an SSE event.
"""

import difflib
from collections.abc import Mapping

import msgspec

from quire_contract import names

TYPE_INVALID = "invalid_request_error"
TYPE_AUTHENTICATION = "authentication_error"
TYPE_RATE_LIMIT = "rate_limit_error"
TYPE_SERVER = "server_error"

CODE_MODEL_NOT_FOUND = "model_not_found"
CODE_NOT_FOUND = "not_found"
CODE_METHOD_NOT_ALLOWED = "method_not_allowed"
CODE_INVALID_API_KEY = "invalid_api_key"
CODE_INVALID_JSON = "invalid_json"
CODE_INVALID_TYPE = "invalid_type"
CODE_INVALID_VALUE = "invalid_value"
CODE_MISSING = "missing_required_parameter"
CODE_UNSUPPORTED = "unsupported_parameter"
CODE_CONTEXT_LENGTH = "context_length_exceeded"
CODE_BODY_TOO_LARGE = "request_too_large"
CODE_QUEUE_FULL = "queue_full"
CODE_DRAINING = "draining"
CODE_NOT_READY = "not_ready"
CODE_QUEUE_TIMEOUT = "queue_timeout"
CODE_DEADLINE = "deadline_exceeded"
CODE_INTERNAL = "internal_error"
CODE_ENGINE_DEAD = "engine_dead"
"""Of a worker's server whose engine is gone: whoever can goes on elsewhere."""
CODE_KEY_EXPIRED = "expired_api_key"
CODE_TENANT_SUSPENDED = "tenant_suspended"
CODE_NOT_ALLOWED = "not_allowed"
CODE_RATE_LIMIT = "rate_limit_exceeded"
CODE_QUOTA = "insufficient_quota"


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The whole body."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that ends with an HTTP error. Servers answer `status`, `headers` and `body()`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = TYPE_INVALID,  # noqa: A002 - the body's own word
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message.encode(errors="replace").decode()
        """Half a surrogate pair, as headers that are not UTF-8 hold them, would not become JSON."""
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def detail(self) -> ErrorDetail:
        """The error as a message part, for bodies and for streams."""
        return ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)

    def body(self) -> bytes:
        """The JSON body."""
        return msgspec.json.encode(ErrorBody(self.detail()))


def invalid(param: str, message: str, code: str = CODE_INVALID_VALUE) -> ApiError:
    """400 that names the field: the message starts with it."""
    return ApiError(400, f"{param}: {message}" if param else message, param=param or None, code=code)


def unauthorized(
    message: str = "Missing or wrong API key; send it as `Authorization: Bearer <key>` or `x-api-key: <key>`.",
) -> ApiError:
    """401."""
    return ApiError(
        401, message, type=TYPE_AUTHENTICATION, code=CODE_INVALID_API_KEY, headers={"WWW-Authenticate": "Bearer"}
    )


def model_not_found(model: str, served: list[str]) -> ApiError:
    """404 for a model that nobody serves; lists those that are served."""
    names = ", ".join(served[:20]) or "none"
    return ApiError(
        404, f"The model `{model[:200]}` does not exist. Served: {names}.", param="model", code=CODE_MODEL_NOT_FOUND
    )


def path_not_found(path: str) -> ApiError:
    """404 for an unknown path. Names the path that was likely meant: mostly a client's base address has /v1 twice, or lacks it."""
    meant = _meant_path(path) if len(path) <= _MAX_GUESSED_PATH else None
    if meant is None:
        return ApiError(404, f"There is nothing at {path[:200]}.", code=CODE_NOT_FOUND)
    why = (
        " OpenAI's clients take an address that ends in /v1, Anthropic's one without."
        if path.rstrip("/") != meant and path.rstrip("/").endswith(meant.removeprefix("/v1"))
        else ""
    )
    return ApiError(404, f"There is nothing at {path}; did you mean {meant}?{why}", code=CODE_NOT_FOUND)


_MAX_GUESSED_PATH = 100
_GUESSED_PATHS = (
    names.PATH_MODELS,
    names.PATH_CHAT,
    names.PATH_COMPLETIONS,
    names.PATH_RESPONSES,
    names.PATH_MESSAGES,
    names.PATH_COUNT_TOKENS,
    names.PATH_EMBEDDINGS,
    names.PATH_RERANK,
    names.PATH_SCORE,
)


def _meant_path(path: str) -> str | None:
    tail = path.rstrip("/")
    while tail.startswith("/v1/"):
        tail = tail.removeprefix("/v1")
    near = difflib.get_close_matches(f"/v1{tail}", _GUESSED_PATHS, n=1, cutoff=0.85)
    return near[0] if near and near[0] != path else None


def body_too_large(max_body_bytes: int) -> ApiError:
    """413."""
    return ApiError(413, f"The request body is larger than {max_body_bytes} bytes.", code=CODE_BODY_TOO_LARGE)


def queue_full(message: str, retry_after_s: int = 1) -> ApiError:
    """429 with Retry-After: the waiting queue is at its bound."""
    return ApiError(
        429, message, type=TYPE_RATE_LIMIT, code=CODE_QUEUE_FULL, headers={"Retry-After": str(retry_after_s)}
    )


def unavailable(message: str, code: str = CODE_NOT_READY, retry_after_s: int = 1) -> ApiError:
    """503 with Retry-After: not ready, draining or dead; another worker or a later try may answer."""
    return ApiError(503, message, type=TYPE_SERVER, code=code, headers={"Retry-After": str(retry_after_s)})


def deadline_exceeded(message: str) -> ApiError:
    """504: the request's own time is over. OpenAI's clients repeat what ends in a 5xx unless they are told not to."""
    return ApiError(504, message, type=TYPE_SERVER, code=CODE_DEADLINE, headers={"x-should-retry": "false"})


def internal(message: str = "The server failed to answer this request.") -> ApiError:
    """500. The message must not show internals."""
    return ApiError(500, message, type=TYPE_SERVER, code=CODE_INTERNAL)
