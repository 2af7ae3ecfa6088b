"""/v1/responses and /v1/messages on the demo model, with the official clients: what they send is what chats are."""

import io
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pydantic
import pytest

from quire_contract.openai.limits import Limits
from quire_worker.server import errors
from quire_worker.server.asked import asked_chat, asked_message, asked_response

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
QUESTION = "Convert 5 km to m."
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
GREEDY: Any = {"temperature": 0}
SCHEMA: Any = {
    "type": "object",
    "properties": {"metres": {"type": "integer", "minimum": 0, "maximum": 9999}},
    "required": ["metres"],
    "additionalProperties": False,
}


class Length(pydantic.BaseModel):
    """What the model is to fill in."""

    metres: int = pydantic.Field(ge=0, le=9999)


@pytest.fixture(scope="module")
def demo(start_real: Any) -> Any:
    flags = ("--device", "cpu", "--compute-threads", "1", "--num-gpu-blocks-override", "256", "--max-model-len", "512")
    return start_real(DEMO, "--served-model-name", "demo", *flags, "--api-key", "sesame").wait_until_ready()


@pytest.fixture(scope="module")
def caller(start_real: Any) -> Any:
    """A worker whose model is read for tool calls; it was never trained to make any, so a grammar must."""
    flags = ("--device", "cpu", "--compute-threads", "1", "--num-gpu-blocks-override", "256", "--max-model-len", "1024")
    return start_real(DEMO, "--served-model-name", "demo", *flags, "--tool-call-parser", "hermes").wait_until_ready()


@pytest.fixture
async def calling_sdk(caller: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with caller.client() as made:
        yield made


@pytest.fixture
async def calling_claude(caller: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=caller.base, api_key="x", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
async def sdk(demo: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{demo.base}/v1", api_key="sesame", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
async def claude(demo: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=demo.base, api_key="sesame", max_retries=0, timeout=60) as made:
        yield made


async def chat_text(sdk: openai.AsyncOpenAI, **options: Any) -> str:
    answer = await sdk.chat.completions.create(**{"model": "demo", "messages": MESSAGES, "temperature": 0, **options})
    return answer.choices[0].message.content or ""


async def test_a_response_says_what_a_chat_says_streamed_or_not(sdk: openai.AsyncOpenAI) -> None:
    expected = await chat_text(sdk)

    answer = await sdk.responses.create(model="demo", input=QUESTION, temperature=0, metadata={"a": "b"}, store=True)
    async with sdk.responses.stream(model="demo", input=QUESTION, temperature=0) as stream:
        texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        streamed = await stream.get_final_response()

    assert answer.output_text == "".join(texts) == streamed.output_text == expected != ""
    assert (answer.status, answer.metadata, answer.model) == ("completed", {"a": "b"}, "demo")
    assert answer.model_extra is not None and answer.model_extra["store"] is False
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert streamed.usage is not None and streamed.usage.output_tokens == answer.usage.output_tokens


async def test_a_response_goes_on_in_a_conversation_that_the_client_keeps(sdk: openai.AsyncOpenAI) -> None:
    first = await sdk.responses.create(model="demo", input=QUESTION, temperature=0, instructions="Be brief.")
    items: Any = [
        {"role": "user", "content": QUESTION},
        *first.output,
        {"role": "user", "content": "Convert 3 km to m."},
    ]

    second = await sdk.responses.create(model="demo", input=items, temperature=0, instructions="Be brief.")

    talk: Any = [
        {"role": "system", "content": "Be brief."},
        *MESSAGES,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Convert 3 km to m."},
    ]
    assert second.output_text == await chat_text(sdk, messages=talk)


async def test_a_response_brings_log_probabilities_when_they_are_included(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.responses.create(
        model="demo",
        input=QUESTION,
        temperature=0,
        max_output_tokens=4,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )

    content: Any = answer.output[0]
    entries = content.content[0].logprobs
    assert "".join(entry.token for entry in entries) == answer.output_text
    assert all(entry.top_logprobs[0].token == entry.token for entry in entries)
    assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )


async def test_a_response_is_refused_in_the_words_of_its_api(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as stored:
        await sdk.responses.create(model="demo", input=QUESTION, previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError) as long:
        await sdk.responses.create(model="demo", input="word " * 2000)

    assert (stored.value.param, stored.value.code) == ("previous_response_id", "unsupported_parameter")
    assert (long.value.param, long.value.code) == ("input", "context_length_exceeded")


async def test_a_message_says_what_a_chat_says_streamed_or_not(
    sdk: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    expected = await chat_text(sdk)
    asked: Any = {"model": "demo", "max_tokens": 40, "messages": MESSAGES, "extra_body": GREEDY}

    answer: Any = await claude.messages.create(**asked)
    async with claude.messages.stream(**asked) as stream:
        texts = [text async for text in stream.text_stream]
        streamed: Any = await stream.get_final_message()

    assert answer.content[0].text == "".join(texts) == streamed.content[0].text == expected != ""
    assert (answer.stop_reason, answer.role, answer.model) == ("end_turn", "assistant", "demo")
    assert streamed.usage.output_tokens == answer.usage.output_tokens > 0
    total = [one.usage.input_tokens + one.usage.cache_read_input_tokens for one in (answer, streamed)]
    assert total == [(await claude.messages.count_tokens(model="demo", messages=MESSAGES)).input_tokens] * 2


async def test_a_message_ends_at_its_stop_sequence_and_goes_on_where_the_client_began_it(
    claude: anthropic.AsyncAnthropic,
) -> None:
    whole: Any = await claude.messages.create(model="demo", max_tokens=40, messages=MESSAGES, extra_body=GREEDY)
    text = whole.content[0].text
    begun: Any = [*MESSAGES, {"role": "assistant", "content": text[:1]}]

    stopped: Any = await claude.messages.create(
        model="demo", max_tokens=40, messages=MESSAGES, stop_sequences=[text[3:5]], extra_body=GREEDY
    )
    continued: Any = await claude.messages.create(model="demo", max_tokens=40, messages=begun, extra_body=GREEDY)

    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == (
        "stop_sequence",
        text[3:5],
        text[:3],
    )
    assert text[:1] + continued.content[0].text == text


async def test_errors_of_messages_raise_what_anthropics_client_knows(
    demo: Any, claude: anthropic.AsyncAnthropic
) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await claude.messages.create(model="nobody", max_tokens=4, messages=MESSAGES)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: 0 is out of range"):
        await claude.messages.create(model="demo", max_tokens=0, messages=MESSAGES)
    async with anthropic.AsyncAnthropic(base_url=demo.base, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await stranger.messages.count_tokens(model="demo", messages=MESSAGES)

    body: Any = unknown.value.body
    assert body["error"]["type"] == "not_found_error"
    assert unknown.value.request_id == body["request_id"] is not None
    assert refused.value.status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
    ],
)
async def test_what_no_handler_sees_is_refused_in_anthropics_form_too(
    method: str, path: str, status: int, kind: str, demo: Any, http: aiohttp.ClientSession
) -> None:
    headers = {"x-api-key": "sesame", "X-Request-Id": "mine"}
    async with http.request(method, demo.base + path, headers=headers) as answer:
        body = await answer.json()

    assert (answer.status, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == answer.headers["request-id"] == "mine"


async def test_a_body_over_the_limit_is_refused_in_anthropics_form(demo: Any, http: aiohttp.ClientSession) -> None:
    headers = {"x-api-key": "sesame", "Content-Type": "application/json"}
    async with http.post(f"{demo.base}/v1/messages", data=io.BytesIO(b" " * (5 << 20)), headers=headers) as answer:
        body = await answer.json()

    assert (answer.status, body["error"]["type"]) == (413, "request_too_large")


async def test_a_response_is_parsed_into_the_clients_own_model(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.responses.parse(model="demo", input=QUESTION, text_format=Length, max_output_tokens=60)

    assert isinstance(answer.output_parsed, Length)


async def test_a_message_is_parsed_into_the_clients_own_model(claude: anthropic.AsyncAnthropic) -> None:
    answer: Any = await claude.messages.create(
        model="demo",
        max_tokens=60,
        messages=MESSAGES,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )

    assert Length.model_validate_json(answer.content[0].text).metres >= 0


async def test_a_response_calls_a_function_and_reads_its_output(calling_sdk: openai.AsyncOpenAI) -> None:
    sdk = calling_sdk
    tool: Any = {"type": "function", "name": "tell", "parameters": SCHEMA, "strict": True}
    asked: Any = {"model": "demo", "input": QUESTION, "tools": [tool], "tool_choice": "required"}

    first = await sdk.responses.create(**asked, max_output_tokens=80)
    async with sdk.responses.stream(**asked, max_output_tokens=80, temperature=0) as stream:
        streamed = await stream.get_final_response()
    call: Any = first.output[0]
    items: Any = [
        {"role": "user", "content": QUESTION},
        *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "told"},
    ]
    second = await sdk.responses.create(model="demo", input=items, tools=[tool], max_output_tokens=8)

    assert (call.type, call.name) == ("function_call", "tell")
    assert Length.model_validate_json(call.arguments).metres >= 0
    assert [item.type for item in streamed.output] == ["function_call"]
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens


async def test_a_message_uses_a_tool_and_reads_its_result(calling_claude: anthropic.AsyncAnthropic) -> None:
    claude = calling_claude
    tool: Any = {"name": "tell", "input_schema": SCHEMA, "strict": True}
    asked: Any = {"model": "demo", "max_tokens": 80, "messages": MESSAGES, "tools": [tool]}

    first: Any = await claude.messages.create(**asked, tool_choice={"type": "tool", "name": "tell"})
    async with claude.messages.stream(**asked, tool_choice={"type": "any"}) as stream:
        streamed: Any = await stream.get_final_message()
    use = first.content[0]
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "told"}
    talk: Any = [*MESSAGES, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    counted = await claude.messages.count_tokens(model="demo", messages=talk, tools=[tool])

    assert (use.type, use.name, first.stop_reason) == ("tool_use", "tell", "tool_use")
    assert Length.model_validate(use.input).metres >= 0
    assert (streamed.content[0].type, streamed.stop_reason) == ("tool_use", "tool_use")
    assert counted.input_tokens > first.usage.input_tokens + first.usage.cache_read_input_tokens


def test_what_breaks_a_stream_names_the_clients_own_field() -> None:
    error = errors.of_grammar("response_format.json_schema.schema", "leaves no token")
    message = asked_message(json.dumps({"model": "m", "max_tokens": 5, "messages": MESSAGES}).encode(), Limits())
    response = asked_response(json.dumps({"model": "m", "input": QUESTION}).encode(), Limits())
    chat = asked_chat(json.dumps({"model": "m", "messages": MESSAGES}).encode(), Limits())

    assert message.own_error(error).param == "output_config.format.schema"
    assert response.own_error(error).message == "text.format.schema: leaves no token"
    assert chat.own_error(error) is error


async def test_a_lost_engine_ends_streams_in_the_form_of_their_api(launch: Callable[..., Any]) -> None:
    worker = launch("--served-model-name", "tiny", "--fake-decode-s-per-step", "0.02").wait_until_ready()
    slow: Any = {"extra_body": {"ignore_eos": True, "temperature": 0}}
    async with (
        openai.AsyncOpenAI(base_url=f"{worker.base}/v1", api_key="x", max_retries=0) as sdk,
        anthropic.AsyncAnthropic(base_url=worker.base, api_key="x", max_retries=0) as claude,
    ):
        responses = await sdk.responses.create(
            model="tiny",
            input="hi",
            stream=True,
            max_output_tokens=1900,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        messages = await claude.messages.create(model="tiny", max_tokens=1900, messages=MESSAGES, stream=True, **slow)
        first = [(await anext(aiter(stream))).type for stream in (responses, messages)]

        os.kill(worker.engine_pid(), signal.SIGKILL)
        last: Any = None
        async for event in responses:
            last = event
        with pytest.raises(anthropic.APIStatusError, match="The engine is gone") as broken:
            async for _ in messages:
                pass

    assert first == ["response.created", "message_start"]
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    body: Any = broken.value.body
    assert body["error"]["type"] == "overloaded_error"
