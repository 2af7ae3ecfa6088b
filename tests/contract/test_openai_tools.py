"""Tools of a chat: what is refused, what a template sees, and that a router sees the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_contract.openai.decode import decode_request, decode_routing_fields
from quire_contract.openai.errors import ApiError
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import ChatCompletionRequest, CompletionRequest, TokenizeRequest
from quire_contract.openai.tools import depth_exceeds, tool_use
from quire_contract.prompt import PromptRenderer
from quire_contract.prompt_bundle import PromptBundle
from quire_contract.prompt_input import ChatInput

DEMO = Path(__file__).parents[2] / "examples" / "models" / "quire-demo"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.reasoning_content }}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{% endif %}"
)


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **function}}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def chat(**fields: Any) -> ChatCompletionRequest:
    return decode_request(ChatCompletionRequest, body(**fields))


def deep(levels: int) -> dict[str, Any]:
    return {"type": "object", "properties": json.loads('{"a":' * levels + "1" + "}" * levels)}


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": []}, "tools", "at least one"),
        ({"tools": [tool(str(i)) for i in range(129)]}, "tools", "at most 128"),
        ({"tools": {}}, "tools", "array"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "only function tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "letters"),
        ({"tools": [tool("")]}, "tools[0].function.name", "letters"),
        ({"tools": [tool("a b")]}, "tools[0].function.name", "letters"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name", "64"),
        ({"tools": [tool("a\n")]}, "tools[0].function.name", "letters"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "twice"),
        ({"tools": [tool(description=3)]}, "tools[0].function.description", "string"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict", "true or false"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "schema"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters.type", "object"),
        ({"tools": [tool(parameters=deep(80))]}, "tools[0].function.parameters", "64 levels"),
        ({"tools": [tool(parameters={"description": "x" * 140_000})]}, "tools[0].function.parameters", "bytes"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", "auto, none, required"),
        ({"tool_choice": "auto"}, "tool_choice", "tools are given"),
        ({"tool_choice": "required"}, "tool_choice", "tools are given"),
        ({"tool_choice": NAMED}, "tool_choice", "tools are given"),
        (
            {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
            "not among",
        ),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
        ({"tools": [tool()], "tool_choice": {"type": "custom", "name": "x"}}, "tool_choice.type", "allowed_tools"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "required"),
        (
            {
                "tools": [tool()],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
            },
            "tool_choice.allowed_tools.tools",
            "at least one",
        ),
        (
            {
                "tools": [tool()],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": [NAMED]}},
            },
            "tool_choice.allowed_tools.mode",
            "auto or required",
        ),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "none, minimal, low"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "--allow-chat-template-kwarg"),
        ({"chat_template_kwargs": {"enable_thinking": "x" * 5000}}, "chat_template_kwargs.enable_thinking", "4096"),
        ({"chat_template_kwargs": {"thinking": deep(99)}}, "chat_template_kwargs.thinking", "deep"),
        ({"functions": [{"name": "f"}]}, "functions", "send tools"),
        ({"function_call": {"name": "f"}}, "function_call", "send tool_choice"),
    ],
)
def test_what_is_wrong_with_tools_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)

    assert (caught.value.status, caught.value.param) == (400, param)
    assert words in caught.value.message
    assert len(caught.value.message) < 400


def test_a_completion_has_no_tools() -> None:
    with pytest.raises(ApiError) as caught:
        decode_request(CompletionRequest, json.dumps({"model": "m", "prompt": "p", "tools": [tool()]}).encode())

    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_parameter")


def test_a_server_may_allow_more_template_arguments() -> None:
    limits = Limits(template_kwargs=Limits().template_kwargs | {"mood"})

    request = decode_request(ChatCompletionRequest, body(chat_template_kwargs={"mood": [1]}), limits)

    assert request.chat_template_kwargs == {"mood": [1]}


ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


@pytest.mark.parametrize(
    ("fields", "mode", "functions", "parallel", "restricted"),
    [
        ({}, "none", [], True, False),
        ({"tool_choice": "none"}, "none", [], True, False),
        ({"tools": [tool()], "tool_choice": "none"}, "none", [], True, False),
        ({"tools": [tool(), tool("b")]}, "auto", ["weather", "b"], True, False),
        (
            {"tools": [tool()], "tool_choice": "required", "parallel_tool_calls": False},
            "required",
            ["weather"],
            False,
            False,
        ),
        ({"tools": [tool(), tool("b")], "tool_choice": NAMED}, "named", ["weather"], False, False),
        ({"tools": [tool(), tool("b")], "tool_choice": ALLOWED}, "required", ["weather"], True, True),
    ],
)
def test_tool_use_says_which_functions_may_be_called_and_how(
    fields: dict[str, Any], mode: str, functions: list[str], parallel: bool, restricted: bool
) -> None:
    use = tool_use(chat(**fields))

    assert (use.mode, [function.name for function in use.functions]) == (mode, functions)
    assert (use.parallel, use.restricted) == (parallel, restricted)


def test_a_function_without_parameters_takes_none() -> None:
    use = tool_use(chat(tools=[{"type": "function", "function": {"name": "now"}}]))

    assert use.functions[0].parameters == {"type": "object", "properties": {}, "additionalProperties": False}


def test_a_template_sees_tools_in_the_order_it_was_trained_on_and_without_what_is_for_the_server() -> None:
    request = chat(
        tools=[{"function": {"strict": True, "parameters": SCHEMA, "description": "d", "name": "w", "x": 1}}]
    )

    source = request.prompt_input()

    assert isinstance(source, ChatInput) and source.tools is not None
    assert json.dumps(source.tools[0]) == json.dumps(
        {"type": "function", "function": {"name": "w", "description": "d", "parameters": SCHEMA, "x": 1}}
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"reasoning_effort": "none"}, {"enable_thinking": False, "thinking": False}),
        ({"reasoning_effort": "low"}, {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"thinking": True}},
            {"enable_thinking": False, "thinking": True},
        ),
        ({}, {}),
    ],
)
def test_an_effort_reaches_the_template_by_the_names_it_may_read(fields: dict[str, Any], told: dict[str, Any]) -> None:
    source = chat(**fields).prompt_input()

    assert isinstance(source, ChatInput)
    assert source.template_kwargs == told


HISTORY = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "Look it up.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]


@pytest.fixture(scope="module")
def renderer() -> PromptRenderer:
    bundle = PromptBundle.from_model_dir(
        DEMO, block_size=16, max_model_len=4096, served_model_names=["m"], chat_template=TEMPLATE
    )
    return PromptRenderer(bundle)


def test_earlier_calls_and_their_answers_reach_the_template(renderer: PromptRenderer) -> None:
    request = chat(messages=HISTORY, tools=[tool()])
    source = request.prompt_input()
    assert isinstance(source, ChatInput)

    text = renderer.render(source.messages, source.tools)

    assert '"name": "weather", "parameters"' in text
    assert 'assistant:Look it up.<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>' in text
    assert "tool:sunny" in text.replace("None", "")


@settings(deadline=None, max_examples=60)
@given(
    st.fixed_dictionaries(
        {"messages": st.sampled_from([HISTORY, HISTORY[:1]])},
        optional={
            "tools": st.sampled_from([[tool()], [tool("b", description="é", strict=True), tool()], None]),
            "tool_choice": st.sampled_from(["none", None]),
            "reasoning_effort": st.sampled_from(["none", "high", None]),
            "chat_template_kwargs": st.sampled_from([{"enable_thinking": False}, {}, None]),
            "parallel_tool_calls": st.booleans(),
            "include_reasoning": st.booleans(),
        },
    )
)
def test_a_router_computes_the_workers_prompt_for_every_chat_with_tools(
    renderer: PromptRenderer, fields: dict[str, Any]
) -> None:
    data = body(**fields)

    worker = renderer.request_prompts(decode_request(ChatCompletionRequest, data))
    router = renderer.request_prompts(decode_routing_fields(data))
    asked = {name: fields[name] for name in fields if name in TokenizeRequest.__struct_fields__}
    counted = renderer.request_prompts(decode_request(TokenizeRequest, json.dumps(asked).encode()))

    assert worker == router == counted


def test_a_router_lets_pass_what_only_the_worker_can_refuse(renderer: PromptRenderer) -> None:
    fields = decode_routing_fields(body(tools=[{"function": 3}, {"a": 1}], chat_template_kwargs={"x": 1}))

    assert renderer.request_prompts(fields)


def test_depth_is_counted_without_recursion() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]

    assert depth_exceeds(nested, 64)
    assert not depth_exceeds([[1], {"a": 2}], 2)
