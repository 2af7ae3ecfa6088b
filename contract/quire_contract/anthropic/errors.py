"""Errors in Anthropic's form.

    {"type": "error", "error": {"type": str, "message": str}, "request_id": str | null}

`error.type` follows from the HTTP status. The form has no place for a field's path, so the message begins with it.
"""

import msgspec

from quire_contract.openai.errors import ApiError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicError(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorBody(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """The whole body."""

    error: AnthropicError
    request_id: str | None = None


def anthropic_error(error: ApiError) -> AnthropicError:
    """The error as a message part, for bodies and for streams."""
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    message = error.message
    if error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    return AnthropicError(type=_TYPES.get(error.status, other), message=message)
