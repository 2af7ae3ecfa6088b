"""Tools and reasoning through the openai SDK, against a worker whose engine says what the test tells it to."""

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest
from tokenizers import AddedToken, Tokenizer

from quire_worker.config import WorkerConfig
from quire_worker.server.worker import Worker

ENGINE = Path(__file__).with_name("scripted_engine.py")
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}{% endif %}"
)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 8},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
TOOLS: Any = [WEATHER, CLOCK]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 3}}\n</tool_call>'
CALLED = ("get_weather", '{"city": "Köln", "days": 3}')


@pytest.fixture(scope="module")
def speaking_model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with markers in its vocabulary, some of them special, and a template that knows tools and reasoning."""
    folder = tmp_path_factory.mktemp("speaking")
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.add_tokens(
        [AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>", "<think>", "</think>")]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|say|>", "[TOOL_CALLS]", "[ARGS]", "<|odd|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((model_dir / "config.json").read_text()) | {"vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}))
    return folder


Serve = Callable[..., AbstractAsyncContextManager[openai.AsyncOpenAI]]


@pytest.fixture
def serve(speaking_model: Path) -> Serve:
    """A worker in this process; a client of it."""

    @asynccontextmanager
    async def serving(group: int = 1, **changes: Any) -> AsyncIterator[openai.AsyncOpenAI]:
        config = WorkerConfig(model=speaking_model, served_model_names=("tiny",), port=0, **changes)
        command = (sys.executable, str(ENGINE), str(speaking_model), str(group))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            running = asyncio.create_task(Worker(config, None, listening, "test", engine_command=command).run())
            base = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
            try:
                async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=60, timeout=60) as client:
                    yield client
            finally:
                running.cancel()
                await asyncio.wait([running])
                if not running.cancelled():
                    running.exception()

    return serving


def saying(text: str, **fields: Any) -> dict[str, Any]:
    """A request that the engine answers with `text`."""
    extra = fields.pop("extra_body", {})
    messages = [{"role": "user", "content": f"Speak.<|say|>{text}"}]
    return {"model": "tiny", "messages": messages, "seed": 3, **fields, "extra_body": extra}


async def streamed(client: openai.AsyncOpenAI, **request: Any) -> list[dict[str, Any]]:
    """Each choice of a stream put together as clients do: content, reasoning, calls, finish reason, bytes of log-probabilities."""
    found: list[dict[str, Any]] = []
    async for chunk in await client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            while len(found) <= choice.index:
                found.append({"content": "", "reasoning": "", "calls": [], "reason": None, "logprobs": []})
            seen = found[choice.index]
            assert seen["reason"] is None, "nothing follows a finish reason"
            seen["content"] += choice.delta.content or ""
            extra = choice.delta.model_extra or {}
            assert extra.get("reasoning") == extra.get("reasoning_content")
            seen["reasoning"] += extra.get("reasoning") or ""
            for call in choice.delta.tool_calls or []:
                if call.id is not None:
                    assert call.index == len(seen["calls"]) and call.type == "function"
                    seen["calls"].append([call.function.name, ""])
                seen["calls"][call.index][1] += call.function.arguments
            seen["reason"] = choice.finish_reason
            seen["logprobs"] += [
                byte
                for entry in (choice.logprobs.content if choice.logprobs else None) or []
                for byte in entry.bytes or []
            ]
    return found


async def whole(client: openai.AsyncOpenAI, **request: Any) -> list[dict[str, Any]]:
    """The same of an answer in one go."""
    answer = await client.chat.completions.create(**request)
    return [
        {
            "content": choice.message.content or "",
            "reasoning": (choice.message.model_extra or {}).get("reasoning", ""),
            "calls": [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or []],
            "reason": choice.finish_reason,
            "logprobs": [
                byte
                for entry in (choice.logprobs.content if choice.logprobs else None) or []
                for byte in entry.bytes or []
            ],
        }
        for choice in answer.choices
    ]


SPOKEN: list[tuple[str, str, list[tuple[str, str]], str]] = [
    (f"Let me see.\n{CALL}", "Let me see.", [CALLED], "tool_calls"),
    (f"{CALL}\n{CALL}", "", [CALLED, CALLED], "tool_calls"),
    ("No tools needed. \n", "No tools needed. \n", [], "stop"),
    ("<tool_call>\noops\n</tool_call>", "<tool_call>\noops\n</tool_call>", [], "stop"),
    ('<tool_call>{"name": "clock", "arguments": {"a": oops}', "oops}", [("clock", '{"a": ')], "stop"),
]


@pytest.mark.parametrize("group", [1, 3, 1000])
async def test_a_stream_of_calls_adds_up_to_the_message_in_one_go(serve: Serve, group: int) -> None:
    async with serve(group) as client:
        for text, content, calls, reason in SPOKEN:
            request = saying(text, tools=TOOLS, n=2, logprobs=True)

            message, stream = await whole(client, **request), await streamed(client, **request)

            assert stream == message
            assert len(message) == 2
            assert (message[0]["content"], message[0]["reason"]) == (content, reason)
            assert [tuple(call) for call in message[0]["calls"]] == calls
            assert bytes(message[0]["logprobs"]).decode().replace("<|im_end|>", "") == text


async def test_a_message_of_calls_has_null_content_and_ids_of_their_own(serve: Serve) -> None:
    async with serve() as client:
        answer = await client.chat.completions.create(**saying(CALL + CALL, tools=TOOLS))

    message = answer.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", call.id) for call in message.tool_calls)
    assert message.tool_calls[0].id != message.tool_calls[1].id


async def test_with_none_tools_are_not_looked_for_and_the_token_that_opens_a_call_is_ruled_out(serve: Serve) -> None:
    rest = CALL.removeprefix("<tool_call>")
    async with serve() as client:
        request = saying(CALL, tools=TOOLS, tool_choice="none")
        (message,), (stream,) = await whole(client, **request), await streamed(client, **request)

    assert message == stream
    assert (message["content"], message["calls"], message["reason"]) == (rest, [], "stop")


async def test_without_parallel_calls_there_is_one(serve: Serve) -> None:
    async with serve() as client:
        (message,) = await whole(client, **saying(CALL + CALL, tools=TOOLS, parallel_tool_calls=False))

    assert [tuple(call) for call in message["calls"]] == [CALLED]


async def test_a_call_that_the_token_limit_or_a_stop_string_cuts_is_not_told_as_complete(serve: Serve) -> None:
    async with serve() as client:
        request = saying(CALL, tools=TOOLS, max_tokens=50)
        (cut,), (same,) = await whole(client, **request), await streamed(client, **request)
        (stopped,) = await whole(client, **saying(CALL, tools=TOOLS, stop="Kö"))
        (after,) = await whole(client, **saying(CALL, tools=TOOLS, stop="</tool_call>"))

    assert cut == same
    assert cut["reason"] == "length"
    assert CALLED[1].startswith(cut["calls"][0][1]) and len(cut["calls"][0][1]) < len(CALLED[1])
    assert (stopped["reason"], stopped["calls"]) == ("stop", [["get_weather", '{"city": "']])
    assert (after["reason"], after["calls"]) == ("tool_calls", [list(CALLED)])


async def test_markers_that_are_special_tokens_are_seen_and_not_shown(serve: Serve) -> None:
    text = 'Well[TOOL_CALLS]clock[ARGS]{"a": 1}[TOOL_CALLS]clock[ARGS]{}'
    async with serve(tool_call_parser="mistral") as client:
        request = saying(text, tools=TOOLS)
        (message,), (stream,) = await whole(client, **request), await streamed(client, **request)
        (broken,) = await whole(client, **saying("a[TOOL_CALLS]b c d", tools=TOOLS))
        (shown,) = await whole(
            client, **saying("a[TOOL_CALLS]b c d", tools=TOOLS, extra_body={"skip_special_tokens": False})
        )
        ids = (await client.chat.completions.create(**request)).choices[0].message.tool_calls

    assert message == stream
    assert (message["content"], message["calls"]) == ("Well", [["clock", '{"a": 1}'], ["clock", "{}"]])
    assert broken["content"] == "ab c d"
    assert shown["content"] == "a[TOOL_CALLS]b c d"
    assert ids is not None and all(re.fullmatch(r"[a-zA-Z0-9]{9}", call.id) for call in ids)


async def test_special_tokens_that_are_no_markers_stay_hidden(serve: Serve) -> None:
    async with serve() as client:
        (message,) = await whole(client, **saying("a<|odd|>b", tools=TOOLS))

    assert message["content"] == "ab"


@pytest.mark.parametrize("opened", [True, False])
async def test_reasoning_has_both_names_and_is_counted(serve: Serve, opened: bool) -> None:
    text = "I think 日本.\n</think>\n\nYes." if opened else "<think>\nI think 日本.\n</think>\n\nYes."
    async with serve() as client:
        extra = {"chat_template_kwargs": {"enable_thinking": opened}}
        request = saying(text, extra_body=extra)
        answer = await client.chat.completions.create(**request)
        (stream,) = await streamed(client, **request)
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                **request, stream=True, stream_options={"include_usage": True}
            )
        ]

    message = answer.choices[0].message
    assert message.content == "Yes."
    assert message.model_extra == {"reasoning": "I think 日本.", "reasoning_content": "I think 日本."}
    assert (stream["content"], stream["reasoning"]) == ("Yes.", "I think 日本.")
    details = [usage.completion_tokens_details for usage in (answer.usage, chunks[-1].usage) if usage is not None]
    assert answer.usage is not None
    num_answer = len("\n\nYes.") + 1
    assert [d.reasoning_tokens if d else None for d in details] == [answer.usage.completion_tokens - num_answer] * 2


async def test_reasoning_that_is_not_wanted_is_counted_but_not_sent(serve: Serve) -> None:
    async with serve() as client:
        request = saying("<think>Hm.</think>Yes.", extra_body={"include_reasoning": False})
        answer = await client.chat.completions.create(**request)
        (stream,) = await streamed(client, **request)

    assert answer.choices[0].message.content == stream["content"] == "Yes."
    assert not answer.choices[0].message.model_extra and stream["reasoning"] == ""
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 5


async def test_an_effort_of_none_tells_the_template_and_a_high_one_opens_the_tag(serve: Serve) -> None:
    async with serve() as client:
        (none,) = await whole(client, **saying("Yes.</think>", reasoning_effort="none"))
        (high,) = await whole(client, **saying("Hm.</think>Yes.", reasoning_effort="high"))

    assert (none["reasoning"], none["content"]) == ("", "Yes.</think>")
    assert (high["reasoning"], high["content"]) == ("Hm.", "Yes.")


async def test_a_message_that_is_continued_inside_its_reasoning_goes_on_there(serve: Serve) -> None:
    request = saying(" more</think>Yes.", extra_body={"continue_final_message": True})
    async with serve() as client:
        request["messages"].append({"role": "assistant", "content": "<think>First"})
        (inside,) = await whole(client, **request)
        request["messages"][-1] = {"role": "assistant", "content": "<think>First</think>So"}
        (behind,) = await whole(client, **request)

    assert (inside["reasoning"], inside["content"]) == ("more", "Yes.")
    assert (behind["reasoning"], behind["content"]) == ("", " more</think>Yes.")


async def test_tools_that_the_model_cannot_be_read_to_call_are_refused(serve: Serve) -> None:
    async with serve(tool_call_parser="none") as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**saying("x", tools=TOOLS))
        (fine,) = await whole(client, **saying("x", tools=TOOLS, tool_choice="none"))

    assert caught.value.param == "tools"
    assert "--tool-call-parser" in caught.value.message
    assert fine["content"] == "x"


async def test_a_conversation_goes_on_behind_a_tools_answer(serve: Serve) -> None:
    async with serve() as client:
        first = await client.chat.completions.create(**saying(CALL, tools=TOOLS))
        message = first.choices[0].message
        assert message.tool_calls is not None
        messages: Any = [
            {"role": "user", "content": "Weather?"},
            message,
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny<|say|>It is sunny."},
        ]
        second = await client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)

    assert second.choices[0].message.content == "It is sunny."


PARSERS = ["hermes", "llama3_json", "mistral", "deepseek_v3", "deepseek_v31", "qwen3_coder"]


@pytest.mark.parametrize("parser", PARSERS)
async def test_required_and_named_calls_are_there_and_valid_whatever_the_model_is(serve: Serve, parser: str) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    async with serve(tool_call_parser=parser, reasoning_parser="none") as client:
        request = saying("", tools=TOOLS, tool_choice="required", n=4, max_tokens=1500)
        messages, streams = await whole(client, **request), await streamed(client, **request)
        named = await whole(client, **saying("", tools=TOOLS, tool_choice=choice, n=3))

    assert streams == messages
    for message in named:
        assert (len(message["calls"]), message["reason"], message["content"]) == (1, "stop", "")
        assert message["calls"][0][0] == "get_weather"
        check_call("get_weather", json.loads(message["calls"][0][1]))
    for message in messages:
        assert message["calls"] and message["content"] == "", message
        for name, arguments in message["calls"]:
            check_call(name, json.loads(arguments))
        assert message["reason"] == "tool_calls"


async def test_a_required_call_may_be_thought_about_first(serve: Serve) -> None:
    named: Any = {"type": "function", "function": {"name": "clock"}}
    async with serve() as client:
        request = saying(
            "", tools=TOOLS, tool_choice=named, n=4, extra_body={"chat_template_kwargs": {"enable_thinking": True}}
        )
        messages = await whole(client, **request)

    for message in messages:
        assert message["content"] == ""
        assert message["reason"] == "length" or message["calls"] == [["clock", "{}"]]


def check_call(name: str, arguments: dict[str, Any]) -> None:
    if name == "clock":
        assert arguments == {}
    else:
        assert name == "get_weather"
        assert arguments.keys() == {"city", "days"}
        assert len(arguments["city"]) <= 8 and 1 <= arguments["days"] <= 9


class Weather(pydantic.BaseModel):
    """Weather of a city."""

    city: Literal["Rome", "Köln"]
    days: int = pydantic.Field(ge=1, le=9)


async def test_the_sdks_helpers_parse_calls_of_pydantic_models(serve: Serve) -> None:
    tools = [openai.pydantic_function_tool(Weather)]
    async with serve() as client:
        request: dict[str, Any] = saying("", tools=tools, tool_choice="required", parallel_tool_calls=False)
        answer = await client.chat.completions.parse(**request)
        async with client.chat.completions.stream(**request) as stream:
            final = await stream.get_final_completion()

    for completion in (answer, final):
        (call,) = completion.choices[0].message.tool_calls or []
        assert isinstance(call.function.parsed_arguments, Weather)
        assert completion.choices[0].finish_reason == "tool_calls"


async def test_langchain_binds_tools_and_streams_calls(serve: Serve) -> None:
    chat_models = pytest.importorskip("langchain_openai")
    async with serve() as client:
        chat = chat_models.ChatOpenAI(
            base_url=str(client.base_url), api_key="none", model="tiny", max_retries=60, stream_usage=True
        )
        text = f"Speak.<|say|>Let me see.\n{CALL}"
        whole_message = await chat.bind_tools(TOOLS).ainvoke(text)
        chunks = [chunk async for chunk in chat.bind_tools(TOOLS).astream(text)]

    joined = chunks[0]
    for chunk in chunks[1:]:
        joined += chunk
    for message in (whole_message, joined):
        assert message.content == "Let me see."
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [
            ("get_weather", {"city": "Köln", "days": 3})
        ]
