"""The Responses API and Anthropic's Messages API through the router: routed like chats, errors in their own form."""

import json

import msgspec
import pytest
from aiohttp import web

from quire_contract.block_hash import hash_blocks, wire_hashes
from quire_contract.prompt import PromptRenderer
from quire_contract.routing import routing_fields
from quire_router.prompts import PromptReader

EVENT_STREAM = {"Content-Type": "text/event-stream"}
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
RESPONSE = {"model": "m", "input": "w1 w2"}
MESSAGE = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "w1 w2"}]}
WORDS = " ".join(f"w{i}" for i in range(60))


def streaming(*parts, broken=False):
    async def behave(request, upstream):
        response = web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        if broken:
            request.transport.abort()
        return response

    return behave


async def too_busy(request, upstream):
    return web.json_response({}, status=503, headers={"x-quire-reason": "not_ready"})


@pytest.fixture
async def one_worker(start_upstream, start_router, make_config):
    """Starts a worker that behaves so behind a router; gives both."""

    async def start(behaviour, **settings):
        worker = await start_upstream("a", behaviour)
        router = await start_router(make_config(worker), **settings)
        await router.until_ready(1)
        return worker, router

    return start


@pytest.mark.parametrize(
    ("path", "body", "chat"),
    [
        (
            RESPONSES,
            {"model": "m", "instructions": WORDS, "input": [{"role": "user", "content": "w7"}]},
            [{"role": "system", "content": WORDS}, {"role": "user", "content": "w7"}],
        ),
        (
            MESSAGES,
            {**MESSAGE, "system": WORDS, "messages": [{"role": "user", "content": [{"type": "text", "text": "w7"}]}]},
            [{"role": "system", "content": WORDS}, {"role": "user", "content": "w7"}],
        ),
    ],
)
async def test_a_prompt_is_hashed_as_the_worker_renders_it(path, body, chat, bundle):
    data = msgspec.json.encode(body)
    reader = PromptReader(executor=None)
    reader.add("d", bundle)
    expected = PromptRenderer(bundle).chat(chat)

    blocks = await reader.read(routing_fields(path, data), len(data), "d")

    assert blocks.num_tokens == len(expected)
    assert blocks.hashes == wire_hashes(hash_blocks(expected, 16))


async def test_the_same_bytes_may_be_another_prompt_in_another_api(bundle):
    """An assistant's message at the end is gone on in by one API and answered by the other."""
    talk = [{"role": "user", "content": WORDS}, {"role": "assistant", "content": "w7"}]
    data = msgspec.json.encode({**MESSAGE, "messages": talk})
    reader = PromptReader(executor=None)
    reader.add("d", bundle)

    lengths = [
        (await reader.read(routing_fields(path, data), len(data), "d")).num_tokens
        for path in ("/v1/chat/completions", MESSAGES)
    ]

    assert lengths[0] > lengths[1]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RESPONSES, RESPONSE),
        (MESSAGES, MESSAGE),
        ("/v1/messages/count_tokens", MESSAGE),
        ("/v1/embeddings", {"model": "m", "input": "w1"}),
        ("/v1/rerank", {"model": "m", "query": "w1", "documents": ["w2"]}),
        ("/v1/score", {"model": "m", "text_1": "w1", "text_2": "w2"}),
    ],
)
async def test_a_call_reaches_a_worker_of_its_model_with_its_own_bytes(path, body, one_worker):
    async def echo(request, upstream):
        return web.json_response({"path": request.path})

    worker, router = await one_worker(echo)

    async with router.post(body, path) as answer:
        told = await answer.json()

    assert (answer.status, told) == (200, {"path": path})
    assert json.loads(worker.bodies[0]) == body


async def test_a_stream_is_relayed_event_by_event(one_worker):
    events = [b"event: message_start\ndata: {}\n\n", b"event: ping\ndata: {}\n\n"]
    _, router = await one_worker(streaming(*events))

    async with router.post({**MESSAGE, "stream": True}, MESSAGES) as answer:
        text = await answer.read()

    assert text == b"".join(events)
    assert answer.headers["x-quire-worker"] == "a"


async def test_a_broken_stream_ends_with_an_error_in_the_form_of_its_api(one_worker):
    events = [b'event: a\ndata: {"n":0}\n\n', b'event: b\ndata: {"n":1}\n\n']
    _, router = await one_worker(streaming(*events, broken=True))

    async with router.post({**RESPONSE, "stream": True}, RESPONSES) as answer:
        response = (await answer.text()).split("\n\n")
    async with router.post({**MESSAGE, "stream": True}, MESSAGES, headers={"X-Request-Id": "r-1"}) as answer:
        message = (await answer.text()).split("\n\n")

    assert response[2].startswith("event: error\ndata: ")
    error = json.loads(response[2].partition("data: ")[2])
    assert (error["type"], error["code"], error["sequence_number"]) == ("error", "stream_broken", 2)
    assert message[2].startswith("event: error\ndata: ")
    told = json.loads(message[2].partition("data: ")[2])
    assert (told["type"], told["error"]["type"], told["request_id"]) == ("error", "api_error", "r-1")
    assert response[3:] == message[3:] == [""]


async def test_refusals_of_the_router_have_anthropics_form_on_anthropics_paths(
    start_upstream, start_router, make_config
):
    worker = await start_upstream("a", too_busy)
    router = await start_router(make_config(worker), api_keys=("sesame",))
    await router.until_ready(1)
    key = {"x-api-key": "sesame", "X-Request-Id": "r-1"}

    seen = []
    for path, body, headers in [
        (MESSAGES, MESSAGE, {"X-Request-Id": "r-1"}),
        (MESSAGES, {**MESSAGE, "model": "nobody"}, key),
        (MESSAGES, {**MESSAGE, "top_k": "x"}, key),
        (MESSAGES, MESSAGE, key),
        ("/v1/messages/nothing", MESSAGE, key),
    ]:
        async with router.post(body, path, headers=headers) as answer:
            told = await answer.json()
            seen.append((answer.status, told["error"]["type"]))
            assert (told["type"], told["request_id"], answer.headers["request-id"]) == ("error", "r-1", "r-1")

    assert seen == [
        (401, "authentication_error"),
        (404, "not_found_error"),
        (400, "invalid_request_error"),
        (503, "overloaded_error"),
        (404, "not_found_error"),
    ]


async def test_a_key_that_the_router_took_goes_no_further_in_whichever_header_it_came(one_worker):
    async def answer_well(request, upstream):
        return web.json_response({})

    worker, router = await one_worker(answer_well, api_keys=("sesame",))
    for headers in ({"x-api-key": "sesame"}, {"Authorization": "Bearer sesame"}):
        async with router.post(MESSAGE, MESSAGES, headers=headers) as answer:
            assert answer.status == 200

    assert all({"x-api-key", "authorization"}.isdisjoint(map(str.lower, seen)) for seen in worker.headers)


async def test_a_body_is_refused_by_the_name_of_its_own_field(one_worker):
    _, router = await one_worker(too_busy)

    async with router.post({**RESPONSE, "input": []}, RESPONSES) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["param"]) == (400, "input")
