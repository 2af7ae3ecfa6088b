"""Which form an error has: that of the API whose path was called. Servers make every error body with this, 401 and 404 included.

The forms themselves are OpenAI's (`openai.errors`) and Anthropic's (`anthropic.errors`).
"""

import msgspec

from quire_contract import names
from quire_contract.anthropic.errors import AnthropicErrorBody, anthropic_error
from quire_contract.anthropic.objects import MessagesErrorEvent
from quire_contract.named_events import named_event
from quire_contract.openai.errors import ApiError
from quire_contract.openai.responses import SSE_DONE, StreamError, sse_event
from quire_contract.openai.responses_objects import ResponsesErrorEvent


def is_anthropic(path: str) -> bool:
    """Whether clients of this path speak Anthropic's API."""
    return path == names.PATH_MESSAGES or path.startswith(names.PATH_MESSAGES + "/")


def error_body(error: ApiError, path: str, request_id: str | None = None) -> bytes:
    """The JSON body of an answer that is an error."""
    if is_anthropic(path):
        return msgspec.json.encode(AnthropicErrorBody(error=anthropic_error(error), request_id=request_id))
    return error.body()


def request_id_headers(path: str, request_id: str) -> dict[str, str]:
    """How an answer on this path tells the request's id."""
    headers = {names.HEADER_REQUEST_ID: request_id}
    if is_anthropic(path):
        headers[names.HEADER_ANTHROPIC_REQUEST_ID] = request_id
    return headers


def broken_stream(error: ApiError, path: str, request_id: str, num_events: int) -> bytes:
    """What a stream ends with when it breaks at somebody who relays it and knows only that `num_events` were sent."""
    if is_anthropic(path):
        return named_event(MessagesErrorEvent(error=anthropic_error(error), request_id=request_id))
    if path == names.PATH_RESPONSES:
        return named_event(ResponsesErrorEvent(sequence_number=num_events, code=error.code, message=error.message))
    return sse_event(StreamError(error.detail())) + SSE_DONE
