"""Bad input gets a nested error that names the field, within a bounded time, and the next request is unharmed."""

import asyncio
import gzip
import io
import json
import zlib
from typing import Any

import aiohttp
import pytest

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 2}


def chat(**changes: Any) -> tuple[str, bytes]:
    return "/v1/chat/completions", json.dumps({**CHAT, **changes}).encode()


def text(**changes: Any) -> tuple[str, bytes]:
    return "/v1/completions", json.dumps({**TEXT, **changes}).encode()


CASES: dict[str, tuple[tuple[str, bytes], int, str | None, str | None]] = {
    # name: (request, status, param, code)
    "not JSON": (("/v1/chat/completions", b"{nope"), 400, None, "invalid_json"),
    "empty": (("/v1/completions", b""), 400, None, "invalid_json"),
    "a list": (("/v1/completions", b"[]"), 400, None, "invalid_type"),
    "not UTF-8": (("/v1/completions", b'{"model":"tiny","prompt":"\xff\xfe"}'), 400, None, "invalid_json"),
    "deeply nested": (("/v1/completions", b'{"prompt":' + b"[" * 100_000), 400, None, "invalid_json"),
    "prompt of a wrong type": (text(prompt={"a": 1}), 400, "prompt", "invalid_type"),
    "no prompt": (("/v1/completions", b'{"model":"tiny"}'), 400, "prompt", "missing_required_parameter"),
    "empty prompt list": (text(prompt=[]), 400, "prompt", "invalid_value"),
    "empty prompt": (text(prompt=""), 400, "prompt", "invalid_value"),
    "temperature of a wrong type": (chat(temperature="hot"), 400, "temperature", "invalid_type"),
    "temperature out of range": (chat(temperature=3), 400, "temperature", "invalid_value"),
    "unknown model": (chat(model="gpt-none"), 404, "model", "model_not_found"),
    "no messages": (chat(messages=[]), 400, "messages", "invalid_value"),
    "unknown role": (chat(messages=[{"role": "boss", "content": "x"}]), 400, "messages[0].role", "invalid_value"),
    "an image": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        400,
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    "prompt longer than the model": (text(prompt="fox " * 3000), 400, "prompt", "context_length_exceeded"),
    "chat longer than the model": (
        chat(messages=[{"role": "user", "content": "fox " * 3000}]),
        400,
        "messages",
        "context_length_exceeded",
    ),
    "prompt too long to be worth tokenising": (text(prompt="x" * 1_000_000), 400, "prompt", "context_length_exceeded"),
    "token ids longer than the model": (text(prompt=[70] * 2048), 400, "prompt", "context_length_exceeded"),
    "max_tokens beyond the model": (text(max_tokens=5000), 400, "max_tokens", "context_length_exceeded"),
    "a number beyond every type": (
        ("/v1/completions", b'{"model":"tiny","prompt":"a","n":1.5,"x":1e999}'),
        400,
        "n",
        "invalid_type",
    ),
    "top_k beyond every type": (text(top_k=10**400), 400, "top_k", "invalid_value"),
    "n too large": (chat(n=10_000), 400, "n", "invalid_value"),
    "max_tokens negative": (chat(max_tokens=-1), 400, "max_tokens", "invalid_value"),
    "max_tokens huge": (
        ("/v1/completions", b'{"model":"tiny","prompt":"a","max_tokens":1%s}' % (b"0" * 300)),
        400,
        "max_tokens",
        None,
    ),
    "logit_bias value": (chat(logit_bias={"5": 500}), 400, "logit_bias[5]", "invalid_value"),
    "logit_bias key": (chat(logit_bias={"five": 1}), 400, "logit_bias[five]", "invalid_value"),
    "logit_bias outside the vocabulary": (chat(logit_bias={"99999": 1}), 400, "logit_bias[99999]", "invalid_value"),
    "token ids outside the vocabulary": (text(prompt=[1, 99_999]), 400, "prompt[1]", "invalid_value"),
    "negative token id": (text(prompt=[-1]), 400, "prompt[0]", "invalid_value"),
    "stop token outside the vocabulary": (text(stop_token_ids=[99_999]), 400, "stop_token_ids[0]", "invalid_value"),
    "a hundred stop strings": (text(stop=[f"s{i}" for i in range(100)]), 400, "stop", "invalid_value"),
    "an empty stop string": (text(stop=""), 400, "stop", "invalid_value"),
    "logprobs too many": (text(logprobs=1000), 400, "logprobs", "invalid_value"),
    "stream_options without stream": (
        text(stream_options={"include_usage": True}),
        400,
        "stream_options",
        "invalid_value",
    ),
    "suffix": (text(suffix="x"), 400, "suffix", "unsupported_parameter"),
    "echo of a chat": (chat(echo=True), 400, "echo", "unsupported_parameter"),
    "nothing wanted": (text(max_tokens=0), 400, "max_tokens", "invalid_value"),
    "no token allowed": (text(allowed_token_ids=[]), 400, "allowed_token_ids", "invalid_value"),
    "an allowed token that is none": (chat(allowed_token_ids=[10**9]), 400, "allowed_token_ids[0]", "invalid_value"),
    "named tokens without logprobs": (text(logprob_token_ids=[1]), 400, "logprob_token_ids", "invalid_value"),
    "a named token that is none": (
        text(logprobs=1, logprob_token_ids=[-1]),
        400,
        "logprob_token_ids[0]",
        "invalid_value",
    ),
    "an empty bad word": (text(bad_words=["a", ""]), 400, "bad_words[1]", "invalid_value"),
    "all logprobs of the prompt": (text(prompt_logprobs=-1), 400, "prompt_logprobs", "invalid_value"),
    "a prompt cut to nothing": (text(truncate_prompt_tokens=0), 400, "truncate_prompt_tokens", "invalid_value"),
    "a pattern that comes once": (
        chat(repetition_detection={"max_pattern_size": 3, "min_count": 1}),
        400,
        "repetition_detection.min_count",
        "invalid_value",
    ),
    "guided_json": (chat(guided_json={"type": "object"}), 400, "guided_json", "unsupported_parameter"),
    "tools": (chat(tools=[{"type": "function", "function": {"name": "f"}}]), 400, "tools", "unsupported_parameter"),
    "detokenize outside the vocabulary": (("/detokenize", b'{"tokens":[99999]}'), 400, "tokens[0]", "invalid_value"),
    "tokenize of an unknown model": (("/tokenize", b'{"model":"x","prompt":"a"}'), 404, "model", "model_not_found"),
    "a body of 5 MB": (text(prompt="x" * 5_000_000), 413, None, "request_too_large"),
}


async def post(http: aiohttp.ClientSession, url: str, body: Any, content_type: str = "application/json") -> Any:
    async with asyncio.timeout(60):
        data = io.BytesIO(body) if isinstance(body, bytes) else body
        return await http.post(url, data=data, headers={"Content-Type": content_type})


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    body = await response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert len(error["message"]) < 1000
    return error


@pytest.mark.parametrize("name", CASES)
async def test_bad_input_is_refused_by_name_and_the_next_request_is_unharmed(
    http: aiohttp.ClientSession, worker: Any, name: str
) -> None:
    (path, body), status, param, code = CASES[name]

    refused = await post(http, worker.base + path, body)
    error = await error_of(refused)
    following = await post(http, f"{worker.base}/v1/completions", json.dumps(TEXT).encode())

    assert (refused.status, error["param"]) == (status, param)
    assert code is None or error["code"] == code
    assert "X-Request-Id" in refused.headers
    assert following.status == 200


async def test_a_large_body_without_a_length_is_refused_on_the_way(http: aiohttp.ClientSession, worker: Any) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b"x" * 100_000

    refused = await post(http, f"{worker.base}/v1/completions", endless())

    assert refused.status == 413
    assert (await error_of(refused))["code"] == "request_too_large"


async def test_a_form_is_refused(http: aiohttp.ClientSession, worker: Any) -> None:
    refused = await post(http, f"{worker.base}/v1/completions", json.dumps(TEXT), "application/x-www-form-urlencoded")

    assert refused.status == 400
    assert "application/json" in (await error_of(refused))["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("DELETE", "/health", 405)],
)
async def test_unknown_paths_and_methods_are_nested_errors(
    http: aiohttp.ClientSession, worker: Any, method: str, path: str, status: int
) -> None:
    response = await http.request(method, worker.base + path)

    assert response.status == status
    assert (await error_of(response))["code"] in {"not_found", "method_not_allowed"}


async def test_unknown_fields_are_ignored(http: aiohttp.ClientSession, worker: Any) -> None:
    response = await post(
        http, f"{worker.base}/v1/completions", json.dumps({**TEXT, "made_up_field": {"a": 1}}).encode()
    )

    assert response.status == 200


async def test_a_body_that_is_not_compressed_as_it_says_is_refused(http: aiohttp.ClientSession, worker: Any) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

    async with asyncio.timeout(60):
        refused = await http.post(f"{worker.base}/v1/completions", data=b"not gzip", headers=headers)

    assert refused.status == 400
    assert "Content-Encoding" in (await error_of(refused))["message"]


async def test_a_small_body_that_unpacks_to_much_is_refused(http: aiohttp.ClientSession, worker: Any) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    packed = gzip.compress(json.dumps({**TEXT, "prompt": "a" * 20_000_000}).encode())

    async with asyncio.timeout(60):
        refused = await http.post(f"{worker.base}/v1/completions", data=packed, headers=headers)

    assert refused.status == 413


async def test_a_packed_body_is_unpacked(http: aiohttp.ClientSession, worker: Any) -> None:
    body = json.dumps(TEXT).encode()
    packed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body)}

    answers = [
        await http.post(
            f"{worker.base}/v1/completions",
            data=data,
            headers={"Content-Type": "application/json", "Content-Encoding": coding},
        )
        for coding, data in packed.items()
    ]

    assert [answer.status for answer in answers] == [200, 200]


@pytest.mark.parametrize("coding", ["br", "gzip, gzip"])
async def test_a_coding_that_nobody_here_reads_is_refused_by_name(
    http: aiohttp.ClientSession, worker: Any, coding: str
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}

    refused = await http.post(f"{worker.base}/v1/completions", data=b"{}", headers=headers)

    assert refused.status == 400
    assert coding in (await error_of(refused))["message"]


async def test_a_coding_that_is_no_text_is_refused_too(worker: Any) -> None:
    port = int(worker.base.rpartition(":")[2])
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"

    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"Content-Encoding: \xff\xfe\r\n\r\n{}")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "Content-Encoding ?? is not supported" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"GARBAGE\r\n\r\n", "not valid HTTP"),
        (b"GET /health HTTP/1.1\r\nAuthorization: sk-hidden" + b"a" * 20_000 + b"\r\n\r\n", "more than 8190 bytes"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nAuthorization : sk-hidden\r\n\r\n", "header"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: sk-hidden\r\n\r\n", "Content-Length"),
    ],
)
async def test_broken_http_is_a_nested_error_and_none_of_it_is_repeated_or_logged(
    worker: Any, request_bytes: bytes, reason: str
) -> None:
    port = int(worker.base.rpartition(":")[2])

    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()

    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert b" 400 " in head.splitlines()[0]
    assert b"aiohttp" not in head
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_http")
    assert reason in error["message"]
    assert b"sk-hidden" not in answer
    assert "sk-hidden" not in worker.log
