"""Calls that a grammar demands, from the real engine: the demo model was never trained to call tools, so nothing else brings them about."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
MESSAGES: Any = [{"role": "user", "content": "Convert 5 km to m."}]
CONVERT: Any = {
    "type": "function",
    "function": {
        "name": "convert",
        "parameters": {
            "type": "object",
            "properties": {
                "amount": {"type": "integer", "minimum": 0, "maximum": 99},
                "unit": {"enum": ["km", "m"]},
                "note": {"type": "string", "maxLength": 12},
            },
            "required": ["amount", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
TOOLS: Any = [CONVERT, CLOCK]
FLAGS = (
    "--device",
    "cpu",
    "--compute-threads",
    "1",
    "--num-gpu-blocks-override",
    "256",
    "--max-model-len",
    "1024",
    "--served-model-name",
    "demo",
)


@pytest.fixture(scope="module", params=["hermes", "llama3_json", "mistral", "deepseek_v31", "qwen3_coder"])
def demo(start_real: Any, request: pytest.FixtureRequest) -> Any:
    return start_real(DEMO, *FLAGS, "--tool-call-parser", request.param).wait_until_ready()


@pytest.fixture
async def sdk(demo: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with demo.client() as made:
        yield made


def check(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "clock":
        assert arguments == {}
        return
    assert call.function.name == "convert"
    assert {"amount", "unit"} <= arguments.keys() <= {"amount", "unit", "note"}
    assert 0 <= arguments["amount"] <= 99 and arguments["unit"] in ("km", "m")
    assert len(arguments.get("note", "")) <= 12


@pytest.mark.parametrize("temperature", [0, 1])
async def test_required_calls_are_valid(sdk: openai.AsyncOpenAI, temperature: float) -> None:
    answer = await sdk.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=temperature,
        n=4,
        seed=5,
    )

    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls or []
        check(call)


async def test_a_named_function_is_called_and_the_reason_is_stop(sdk: openai.AsyncOpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "convert"}}

    answer = await sdk.chat.completions.create(
        model="demo", messages=MESSAGES, tools=TOOLS, tool_choice=named, temperature=1, n=4, seed=6
    )

    for choice in answer.choices:
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        assert (choice.finish_reason, call.function.name) == ("stop", "convert")
        check(call)


async def test_a_stream_of_demanded_calls_adds_up_to_the_answer_in_one_go(sdk: openai.AsyncOpenAI) -> None:
    request: dict[str, Any] = {
        "model": "demo",
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "seed": 7,
        "temperature": 1,
    }

    whole = await sdk.chat.completions.create(**request)
    name, arguments, reasons = "", "", []
    async for chunk in await sdk.chat.completions.create(**request, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reasons += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []

    (made,) = whole.choices[0].message.tool_calls or []
    assert made.type == "function"
    assert (name, arguments) == (made.function.name, made.function.arguments)
    assert reasons == ["tool_calls"]


async def test_strict_functions_leave_text_free_and_make_calls_right(sdk: openai.AsyncOpenAI) -> None:
    strict: Any = {"type": "function", "function": {**CONVERT["function"], "strict": True}}

    answer = await sdk.chat.completions.create(
        model="demo", messages=MESSAGES, tools=[strict], temperature=1, n=4, seed=8, max_tokens=40
    )

    for choice in answer.choices:
        if choice.finish_reason == "tool_calls":
            for call in choice.message.tool_calls or []:
                check(call)
        else:
            assert choice.message.content
