"""Answers and errors are what OpenAI's own client reads."""

import json

import msgspec
import pytest
from openai.types import Completion as SdkCompletion
from openai.types import Model as SdkModel
from openai.types.chat import ChatCompletion as SdkChat
from openai.types.chat import ChatCompletionChunk as SdkChunk

from quire_contract.openai.errors import (
    ApiError,
    body_too_large,
    internal,
    invalid,
    model_not_found,
    path_not_found,
    queue_full,
    unauthorized,
    unavailable,
)
from quire_contract.openai.responses import (
    SSE_DONE,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    ModelCard,
    ModelList,
    ResponseMessage,
    StreamError,
    TokenLogprob,
    TopLogprob,
    sse_event,
    usage_of,
)

LOGPROB = TokenLogprob(
    token="hi", logprob=-0.5, bytes=[104, 105], top_logprobs=[TopLogprob(token="hi", logprob=-0.5, bytes=[104, 105])]
)


def test_a_chat_completion_validates_in_the_sdk() -> None:
    choice = ChatChoice(
        index=0,
        message=ResponseMessage(content="hi"),
        finish_reason="stop",
        logprobs=ChatLogprobs(content=[LOGPROB]),
        stop_reason=5,
    )
    answer = ChatCompletion(id="chatcmpl-1", created=1, model="m", choices=[choice], usage=usage_of(3, 2, 1))

    read = SdkChat.model_validate_json(msgspec.json.encode(answer), strict=True)

    assert read.choices[0].message.content == "hi"
    assert read.usage is not None
    assert (read.usage.total_tokens, read.usage.prompt_tokens_details.cached_tokens) == (5, 1)  # type: ignore[union-attr]
    assert read.choices[0].logprobs.content[0].bytes == [104, 105]  # type: ignore[union-attr, index]


def test_chunks_validate_in_the_sdk_and_leave_out_what_is_unset() -> None:
    chunk = ChatCompletionChunk(
        id="c", created=1, model="m", choices=[ChatChunkChoice(index=0, delta=ChatDelta(role="assistant", content=""))]
    )
    last = msgspec.structs.replace(chunk, choices=[], usage=usage_of(1, 1))

    encoded = [msgspec.json.encode(item) for item in (chunk, last)]

    assert [SdkChunk.model_validate_json(item, strict=True).id for item in encoded] == ["c", "c"]
    assert json.loads(encoded[0]) == {
        "id": "c",
        "created": 1,
        "model": "m",
        "object": "chat.completion.chunk",
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ],
    }


def test_a_completion_validates_in_the_sdk() -> None:
    logprobs = CompletionLogprobs(tokens=["a"], token_logprobs=[-1.0], top_logprobs=[{"a": -1.0}], text_offset=[0])
    choice = CompletionChoice(index=0, text="a", finish_reason="length", logprobs=logprobs)
    answer = Completion(id="cmpl-1", created=1, model="m", choices=[choice], usage=usage_of(1, 1))

    read = SdkCompletion.model_validate_json(msgspec.json.encode(answer), strict=True)

    assert read.choices[0].finish_reason == "length"


def test_a_model_list_validates_in_the_sdk() -> None:
    models = ModelList(data=[ModelCard(id="m", created=1, max_model_len=4096)])

    encoded = json.loads(msgspec.json.encode(models))

    assert SdkModel.model_validate(encoded["data"][0], strict=True).id == "m"
    assert encoded["object"] == "list"


def test_an_error_in_a_stream_is_an_event_too() -> None:
    event = sse_event(StreamError(internal("broken").detail()))

    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "broken"


def test_an_event_is_one_data_line() -> None:
    event = sse_event(ChatDelta(content="a\nb"))

    assert event == b'data: {"content":"a\\nb"}\n\n'
    assert SSE_DONE == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (invalid("n", "is too large"), 400, "n", "invalid_value"),
        (unauthorized(), 401, None, "invalid_api_key"),
        (model_not_found("x", ["a", "b"]), 404, "model", "model_not_found"),
        (path_not_found("/x"), 404, None, "not_found"),
        (body_too_large(10), 413, None, "request_too_large"),
        (queue_full("full", 3), 429, None, "queue_full"),
        (unavailable("no worker"), 503, None, "not_ready"),
        (internal(), 500, None, "internal_error"),
    ],
)
def test_every_error_has_the_nested_body(error: ApiError, status: int, param: str | None, code: str) -> None:
    body = json.loads(error.body())

    assert error.status == status
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (
            "/models",
            "did you mean /v1/models? OpenAI's clients take an address that ends in /v1, Anthropic's one without.",
        ),
        ("/v1/v1/messages", "did you mean /v1/messages? OpenAI's clients"),
        ("/chat/completions", "did you mean /v1/chat/completions? OpenAI's clients"),
        ("/v1/chat/completion", "There is nothing at /v1/chat/completion; did you mean /v1/chat/completions?"),
        ("/v1/embeddings/", "did you mean /v1/embeddings?"),
        ("/", "There is nothing at /."),
        ("/v1", "There is nothing at /v1."),
        ("/v1/models", "There is nothing at /v1/models."),
        ("/v1/audio/speech", "There is nothing at /v1/audio/speech."),
        ("/" + "v1/" * 10_000, "There is nothing at /v1/v1/"),
    ],
)
def test_a_path_that_is_nearly_right_is_answered_with_the_right_one(path: str, told: str) -> None:
    error = path_not_found(path)

    assert (error.status, error.code) == (404, "not_found")
    assert told in error.message
    assert len(error.message) < 300


def test_errors_that_pass_say_when_to_come_back() -> None:
    assert queue_full("full", 3).headers == {"Retry-After": "3"}
    assert unavailable("no worker").headers == {"Retry-After": "1"}


def test_an_unknown_model_is_answered_with_the_served_ones() -> None:
    assert model_not_found("x", ["a", "b"]).message == "The model `x` does not exist. Served: a, b."
