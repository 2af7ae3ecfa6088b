"""GET /openapi.json: the route table as an OpenAPI 3.1 document.

Types come from msgspec, ranges from the tables that requests are checked by (`quire_contract.openai.bounds`). A test sends bodies by this
document and holds the answers to it.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from quire_contract import names
from quire_contract.anthropic import chat as anthropic_chat
from quire_contract.anthropic.errors import AnthropicErrorBody
from quire_contract.anthropic.requests import CountTokensRequest, MessagesRequest
from quire_contract.error_form import is_anthropic
from quire_contract.openai import responses_chat
from quire_contract.openai.bounds import number_bounds, size_schemas
from quire_contract.openai.chat_shaped import OwnNames
from quire_contract.openai.errors import ErrorBody
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import ChatCompletionRequest
from quire_contract.openai.responses_requests import ResponsesRequest
from quire_worker.server.routes import JSON, Route

Schema = dict[str, Any]
_COMPONENTS = "#/components/schemas/"
_REASONS = {
    400: "The body is wrong; the error names the field.",
    401: "No key, or a wrong one.",
    403: "Not for this caller.",
    404: "There is no such model or thing.",
    408: "The body did not arrive in time.",
    409: "Not in this state.",
    413: "The body is too large.",
    429: "Too much is waiting; Retry-After says when to come again.",
    500: "The model failed on this request.",
    503: "Not ready, draining or dead, or waited in vain; another worker or a later try may answer.",
    504: "The request was not done in the time it may take.",
}
_OTHERS: Mapping[type, tuple[OwnNames, frozenset[str]]] = {
    ResponsesRequest: (responses_chat.NAMES, responses_chat.SHARED),
    MessagesRequest: (anthropic_chat.NAMES, anthropic_chat.SHARED),
    CountTokensRequest: (anthropic_chat.NAMES, anthropic_chat.SHARED_BY_COUNTING),
}
"""Bodies of other APIs than chats: what they call a chat's fields, and which they take beside their own."""


_KEYWORDS: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum"}),
    "array": frozenset({"minItems", "maxItems", "items"}),
    "object": frozenset({"maxProperties", "propertyNames", "additionalProperties"}),
}
"""What a type can be bounded by."""


class OpenApi:
    """The handler; the document is made once."""

    def __init__(self, routes: Sequence[Route], limits: Limits, version: str) -> None:
        self._make = functools.cache(lambda: msgspec.json.encode(document(routes, limits, version)))

    async def show(self, request: web.Request) -> web.Response:
        """The document."""
        del request
        return web.Response(body=self._make(), content_type=JSON)


def document(routes: Sequence[Route], limits: Limits, version: str) -> Schema:
    """The OpenAPI document of these routes."""
    types = {id(kind): kind for route in routes for kind in _types(route)}
    made, components = msgspec.json.schema_components(types.values(), ref_template=_COMPONENTS + "{name}")
    schemas = dict(zip(types, made, strict=True))
    _add_shared_fields(components)
    for kind in {route.body for route in routes if route.body is not None}:
        _add_bounds(components[kind.__name__], kind, limits)
    paths: dict[str, Schema] = {}
    for route in routes:
        paths.setdefault(_path(route), {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Quire worker", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": names.HEADER_API_KEY},
            },
        },
        "security": [{"bearer": []}, {"key": []}],
    }


def _types(route: Route) -> Iterable[Any]:
    return (kind for kind in (route.body, route.answer, *route.events, _error(route)) if kind is not None)


def _error(route: Route) -> type:
    return AnthropicErrorBody if is_anthropic(route.path) else ErrorBody


def _path(route: Route) -> str:
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)


def _operation(route: Route, schemas: Mapping[int, Schema]) -> Schema:
    made: Schema = {"operationId": route.name, "summary": route.summary, "responses": _responses(route, schemas)}
    parameters = re.findall(r"\{(\w+)\}", _path(route))
    if parameters:
        made["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if route.body is not None:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas[id(route.body)]}}}
    if route.is_open:
        made["security"] = []
    return made


def _responses(route: Route, schemas: Mapping[int, Schema]) -> Schema:
    schema = {"type": "string"} if route.answer is None else schemas[id(route.answer)]
    content: Schema = {route.media: {"schema": schema}}
    if route.events:
        content["text/event-stream"] = {"schema": {"anyOf": [schemas[id(kind)] for kind in route.events]}}
    refused = {
        str(status): {"description": _REASONS[status], "content": {JSON: {"schema": schemas[id(_error(route))]}}}
        for status in sorted({*route.errors, *(() if route.is_open else (401,))})
    }
    return {"200": {"description": "The answer.", "content": content}, **refused}


def _add_shared_fields(components: Mapping[str, Schema]) -> None:
    """Other APIs take a chat's fields about tokens under the same names."""
    chat = components.get(ChatCompletionRequest.__name__)
    for kind, (_, shared) in _OTHERS.items():
        if chat is not None and kind.__name__ in components:
            components[kind.__name__]["properties"] |= {name: chat["properties"][name] for name in sorted(shared)}


def _add_bounds(schema: Schema, kind: type, limits: Limits) -> None:
    """Ranges of numbers and sizes of everything else."""
    bounds, sizes = number_bounds(limits), size_schemas(limits)
    for field in {*bounds, *sizes}:
        name = _OTHERS[kind][0].of(field) if kind in _OTHERS else field
        if name in schema["properties"]:
            extra = bounds[field].schema if field in bounds else sizes[field]
            schema["properties"][name] = _with(schema["properties"][name], extra)


def _with(schema: Schema, extra: Schema) -> Schema:
    """The schema with more keywords, each where the type is that it is about."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_with(choice, extra) for choice in schema["anyOf"]]}
    made = dict(schema)
    for keyword in extra.keys() & _KEYWORDS.get(schema.get("type", ""), frozenset()):
        value, inner = extra[keyword], made.get(keyword)
        made[keyword] = _with(inner, value) if isinstance(inner, dict) else value
    return made
