"""/openapi.json: a valid document of every route that is served."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from jsonschema import Draft202012Validator

from quire_contract.anthropic.requests import MessagesRequest
from quire_contract.openai.limits import Limits
from quire_contract.openai.responses_requests import ResponsesRequest
from quire_worker.server.openapi import document
from quire_worker.server.routes import ROUTES

DOCUMENT = document(ROUTES, Limits(max_logprobs=7), "1.2.3")
SCHEMAS = DOCUMENT["components"]["schemas"]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)


def test_the_document_has_the_form_that_openapi_asks_for() -> None:
    assert re.fullmatch(r"3\.1\.\d+", DOCUMENT["openapi"])
    assert DOCUMENT["info"] == {"title": "Quire worker", "version": "1.2.3"}
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names)) == len(ROUTES)
    for path, method, operation in operations():
        assert path.startswith("/")
        assert method in {"get", "post", "delete"}
        assert operation["summary"]
        named = {(each["in"], each["name"]) for each in operation.get("parameters", ())}
        assert named == {("path", name) for name in re.findall(r"\{([^}]*)\}", path)}
        assert {"200"} <= operation["responses"].keys()
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d", status)
            assert response["description"]
            assert all("schema" in media for media in response["content"].values())


def test_every_schema_is_one_and_every_reference_leads_to_one() -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)

    assert {f"#/components/schemas/{name}" for name in SCHEMAS} == set(references(DOCUMENT))


def test_only_probes_need_no_key() -> None:
    kinds = {name for each in DOCUMENT["security"] for name in each}
    open_paths = {path for path, _, operation in operations() if operation.get("security") == []}

    assert kinds == DOCUMENT["components"]["securitySchemes"].keys() == {"bearer", "key"}
    assert open_paths == {"/health", "/ready", "/metrics"}
    assert all(("401" in each["responses"]) == (path not in open_paths) for path, _, each in operations())


def test_ranges_are_shown_where_the_api_has_the_field_whatever_it_calls_it() -> None:
    chat = SCHEMAS["ChatCompletionRequest"]["properties"]
    response = SCHEMAS["ResponsesRequest"]["properties"]
    message = SCHEMAS["MessagesRequest"]["properties"]

    assert chat["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert chat["top_logprobs"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 7}
    assert chat["logprobs"]["anyOf"][0] == {"type": "boolean"}
    assert chat["messages"]["minItems"] == 1
    assert response["max_output_tokens"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert response["seed"] == chat["seed"]
    assert message["max_tokens"] == {"type": "integer", "minimum": 1}
    assert message["stop_sequences"]["anyOf"][0]["maxItems"] == 4
    assert "stop" not in message


def test_errors_and_streams_have_the_form_of_their_api() -> None:
    for path, _, operation in operations():
        form = "AnthropicErrorBody" if path.startswith("/v1/messages") else "ErrorBody"
        for status, response in operation["responses"].items():
            if status != "200":
                assert response["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{form}"}
    streams = {path for path, _, each in operations() if "text/event-stream" in each["responses"]["200"]["content"]}

    apis = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
    assert streams == {*apis, "/internal/resume"}


def test_whoever_sends_a_body_may_be_too_slow_and_whoever_computes_may_run_out_of_time() -> None:
    for path, method, operation in operations():
        statuses = set(operation["responses"])
        assert ("408" in statuses) == ("requestBody" in operation), (method, path)
        assert ("504" in statuses) == ("500" in statuses), (method, path)


@pytest.mark.parametrize("route", [route for route in ROUTES if route.method == "GET"], ids=lambda route: route.name)
async def test_what_a_get_answers_fits_its_description(route: Any, worker: Any, http: aiohttp.ClientSession) -> None:
    path = route.path.replace("{name:.+}", "tiny").replace("{digest}", "0")
    async with http.get(worker.base + path) as answer:
        described = DOCUMENT["paths"][re.sub(r":[^}]*", "", route.path)]["get"]["responses"][str(answer.status)]
        content = described["content"][answer.content_type]
        body = await (answer.json() if answer.content_type == "application/json" else answer.text())

    rooted = {"components": DOCUMENT["components"], "allOf": [content["schema"]]}
    assert [error.message for error in Draft202012Validator(rooted).iter_errors(body)] == []


def test_the_page_about_the_api_names_every_route_and_every_field() -> None:
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    routes = {re.sub(r":[^}]*", "", route.path) for route in ROUTES}
    fields = {*ResponsesRequest.__struct_fields__, *MessagesRequest.__struct_fields__}

    assert {path for path in routes if path not in page} == set()
    assert {name for name in fields if not re.search(rf"`{name}[`.:]", page)} == set()


async def test_the_document_is_served(worker: Any, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{worker.base}/openapi.json") as answer:
        served = await answer.json()

    assert served["paths"] == document(ROUTES, Limits(), "x")["paths"]
    assert served["info"]["version"] not in ("", "x")
