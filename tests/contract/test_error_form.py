"""An error has the form of the API that was called."""

import json

import pytest

from quire_contract import names
from quire_contract.error_form import broken_stream, error_body, request_id_headers
from quire_contract.openai.errors import ApiError, invalid, queue_full, unauthorized, unavailable

ANTHROPIC = [names.PATH_MESSAGES, names.PATH_COUNT_TOKENS]
OPENAI = [names.PATH_CHAT, names.PATH_RESPONSES, names.PATH_MODELS, "/v1/messagesss"]


@pytest.mark.parametrize("path", ANTHROPIC)
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (unauthorized(), "authentication_error"),
        (invalid("top_k", "is wrong"), "invalid_request_error"),
        (ApiError(404, "no"), "not_found_error"),
        (ApiError(405, "no"), "invalid_request_error"),
        (ApiError(413, "large"), "request_too_large"),
        (queue_full("full"), "rate_limit_error"),
        (unavailable("away"), "overloaded_error"),
        (ApiError(500, "oh"), "api_error"),
        (ApiError(504, "slow"), "timeout_error"),
    ],
)
def test_anthropics_clients_read_the_kind_of_error_from_its_type(path: str, error: ApiError, kind: str) -> None:
    body = json.loads(error_body(error, path, "r-1"))

    assert body == {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": "r-1"}


def test_a_message_that_does_not_name_its_field_gets_it_in_a_form_without_a_place_for_it() -> None:
    error = ApiError(400, "This is too long.", param="messages")

    assert json.loads(error_body(error, names.PATH_MESSAGES))["error"]["message"] == "messages: This is too long."


@pytest.mark.parametrize("path", OPENAI)
def test_everybody_else_gets_openais_form(path: str) -> None:
    body = json.loads(error_body(invalid("top_k", "is wrong"), path, "r-1"))

    assert body["error"]["param"] == "top_k"
    assert request_id_headers(path, "r-1") == {"x-request-id": "r-1"}


def test_anthropics_clients_find_the_id_under_their_own_header() -> None:
    assert request_id_headers(names.PATH_MESSAGES, "r-1") == {"x-request-id": "r-1", "request-id": "r-1"}


def test_a_broken_stream_ends_as_its_clients_expect() -> None:
    error = ApiError(502, "It broke.", code="stream_broken")

    chat = broken_stream(error, names.PATH_CHAT, "r", 7)
    response = broken_stream(error, names.PATH_RESPONSES, "r", 7)
    message = broken_stream(error, names.PATH_MESSAGES, "r", 7)

    assert chat.endswith(b"\n\ndata: [DONE]\n\n")
    assert response == (
        b'event: error\ndata: {"type":"error","sequence_number":7,"code":"stream_broken",'
        b'"message":"It broke.","param":null}\n\n'
    )
    assert message == (
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"It broke."},"request_id":"r"}\n\n'
    )
