"""OpenAI's package for Python against the server: what its users write, tools and structured output included."""

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
from client_server import Server
from pydantic import BaseModel, Field

MESSAGES: Any = [{"role": "user", "content": "Convert 5 km to m."}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "convert",
        "description": "Converts an amount.",
        "parameters": {
            "type": "object",
            "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 99}, "unit": {"enum": ["m", "km"]}},
            "required": ["value", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Step(BaseModel):
    """One step."""

    number: int = Field(ge=0, le=9)
    done: bool


class Plan(BaseModel):
    """Nested, with a list and an enumeration."""

    unit: Literal["m", "cm"]
    steps: list[Step] = Field(min_length=1, max_length=2)


@pytest.fixture
async def sdk(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=60) as made:
        yield made


async def test_parse_gives_a_pydantic_model(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.parse(model="demo", messages=MESSAGES, response_format=Plan, max_tokens=120)

    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Plan)


async def test_a_parsed_stream_ends_in_a_pydantic_model(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.chat.completions.stream(
        model="demo", messages=MESSAGES, response_format=Plan, max_tokens=120
    ) as stream:
        final = await stream.get_final_completion()

    assert isinstance(final.choices[0].message.parsed, Plan)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "convert"}}], ids=["required", "named"]
)
async def test_a_tool_call_has_the_arguments_of_its_schema(sdk: openai.AsyncOpenAI, choice: Any) -> None:
    answer = await sdk.chat.completions.create(
        model="demo", messages=MESSAGES, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=80
    )

    assert answer.choices[0].message.tool_calls is not None
    (call,) = answer.choices[0].message.tool_calls
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "convert"
    assert set(arguments) == {"value", "unit"}


async def test_a_streamed_tool_call_is_the_whole_one(sdk: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {
        "model": "demo",
        "messages": MESSAGES,
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 80,
        "seed": 5,
    }
    whole = await sdk.chat.completions.create(**options)
    name, arguments = "", ""
    async for chunk in await sdk.chat.completions.create(**options, stream=True):
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""

    (expected,) = whole.choices[0].message.tool_calls or []
    assert expected.type == "function"
    assert (name, arguments) == (expected.function.name, expected.function.arguments)


async def test_responses_say_what_chats_say(sdk: openai.AsyncOpenAI) -> None:
    chat = await sdk.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
    response = await sdk.responses.create(model="demo", input="Convert 5 km to m.", temperature=0)
    text = ""
    async for event in await sdk.responses.create(model="demo", input="Convert 5 km to m.", temperature=0, stream=True):
        if event.type == "response.output_text.delta":
            text += event.delta

    assert response.output_text == chat.choices[0].message.content
    assert text == response.output_text
    assert response.status == "completed"


async def test_responses_parse_gives_a_pydantic_model(sdk: openai.AsyncOpenAI) -> None:
    response = await sdk.responses.parse(model="demo", input="Plan.", text_format=Plan, max_output_tokens=120)

    assert isinstance(response.output_parsed, Plan)


async def test_responses_call_tools(sdk: openai.AsyncOpenAI) -> None:
    flat = {"type": "function", **TOOL["function"]}
    response = await sdk.responses.create(
        model="demo", input="Convert 5 km to m.", tools=[flat], tool_choice="required", max_output_tokens=80
    )

    calls = [item for item in response.output if item.type == "function_call"]
    assert calls
    assert set(json.loads(calls[0].arguments)) == {"value", "unit"}
