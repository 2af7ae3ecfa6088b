"""Answers that the router makes itself."""

from typing import Any

import msgspec
from aiohttp import web

from quire_contract import names
from quire_contract.error_form import error_body, request_id_headers
from quire_contract.openai.errors import ApiError


def json_response(value: Any, request_id: str, status: int = 200) -> web.Response:
    """A JSON answer with the request's id."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(value),
        content_type="application/json",
        headers={names.HEADER_REQUEST_ID: request_id},
    )


def error_response(error: ApiError, request_id: str, path: str = "") -> web.Response:
    """An error as the clients of `path` expect it; a 503 also tells its reason in a header, for whoever retries."""
    headers = {**request_id_headers(path, request_id), **error.headers}
    if error.status == 503 and error.code is not None:
        headers[names.HEADER_REASON] = error.code
    return web.Response(
        status=error.status, body=error_body(error, path, request_id), content_type="application/json", headers=headers
    )
