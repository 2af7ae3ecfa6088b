"""POST /v1/messages as a chat: blocks become messages, fields keep their meaning, and refusals speak of the client's own fields."""

import json
from typing import Any

import pytest

from quire_contract.anthropic.chat import decode_count_tokens, decode_messages
from quire_contract.openai.errors import ApiError
from quire_contract.openai.messages import template_message
from quire_contract.openai.requests import stop_strings
from quire_contract.prompt_input import Truncation

BODY: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


def decoded(**fields: Any) -> Any:
    return decode_messages(json.dumps(BODY | fields).encode())


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decoded(**fields)
    return caught.value


def seen(**fields: Any) -> list[dict[str, Any]]:
    """The messages as a template sees them."""
    return [template_message(message) for message in decoded(**fields)[1].messages]


def blocks(role: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(content)}


def test_the_system_prompt_comes_first_as_text_or_as_blocks() -> None:
    cached = {"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}

    assert seen(system="be brief") == seen(system=[cached])
    assert seen(system="be brief")[0] == {"role": "system", "content": "be brief"}


def test_a_conversation_with_tools_becomes_messages_of_its_roles() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "warmth", "input": {"city": "Bonn"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "20"}]}
    thought = {"type": "thinking", "thinking": "look", "signature": "x"}
    messages = [
        {"role": "user", "content": "how warm is it?"},
        blocks("assistant", thought, {"type": "text", "text": "I look."}, call),
        blocks("user", result, {"type": "text", "text": "and tomorrow?"}),
    ]

    chat = seen(messages=messages)

    assert [message["role"] for message in chat] == ["user", "assistant", "tool", "user"]
    assert (chat[1]["content"], chat[1]["reasoning_content"]) == ("I look.", "look")
    assert chat[1]["tool_calls"][0]["id"] == "t1"
    assert chat[1]["tool_calls"][0]["function"] == {"name": "warmth", "arguments": {"city": "Bonn"}}
    assert chat[2] == {"role": "tool", "content": "20", "tool_call_id": "t1"}
    assert chat[3]["content"] == "and tomorrow?"


def test_messages_of_one_role_in_a_row_are_one_message() -> None:
    messages = [
        {"role": "user", "content": "a"},
        blocks("user", {"type": "text", "text": "b"}, {"type": "text", "text": "c"}),
    ]

    assert seen(messages=messages) == [{"role": "user", "content": "a\nb\nc"}]


def test_an_assistants_message_at_the_end_is_gone_on_in() -> None:
    messages = [*BODY["messages"], blocks("assistant", {"type": "text", "text": "The answer is"})]

    chat = decoded(messages=messages)[1]

    assert (chat.continue_final_message, chat.add_generation_prompt) == (True, False)
    assert chat.messages[-1].content == "The answer is"
    assert decoded()[1].continue_final_message is None


def test_fields_keep_their_meaning() -> None:
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 3}

    _, chat = decoded(stop_sequences=["x"], stream=True, metadata={"user_id": "u"}, **sampling)

    assert (chat.max_completion_tokens, stop_strings(chat)) == (5, ["x"])
    assert (chat.temperature, chat.top_p, chat.top_k, chat.stream) == (0.5, 0.9, 4, True)
    assert (chat.seed, chat.user) == (3, "u")


@pytest.mark.parametrize(("kind", "thinks"), [("enabled", True), ("adaptive", True), ("disabled", False)])
def test_whether_to_think_is_told_to_the_template(kind: str, thinks: bool) -> None:
    assert decoded(thinking={"type": kind})[1].chat_template_kwargs == {"enable_thinking": thinks}
    assert decoded()[1].chat_template_kwargs is None


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "is not one of"),
        ({"messages": [blocks("user", {"type": "image"})]}, "messages[0].content[0].type", "reads text"),
        ({"messages": [blocks("user", {"type": "tool_use"})]}, "messages[0].content[0].type", "not supported here"),
        ({"messages": [blocks("user", {"type": "text"})]}, "messages[0].content[0].text", "is required"),
        ({"messages": [blocks("user", {"type": "tool_result"})]}, "messages[0].content[0].tool_use_id", "is required"),
        (
            {"messages": [blocks("user", {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]})]},
            "messages[0].content[0].content[0].type",
            "reads text",
        ),
        (
            {"messages": [blocks("assistant", {"type": "tool_use", "id": "t", "name": "f", "input": {}})]},
            "messages[0].content",
            "end with a user's message",
        ),
        ({"messages": [blocks("user", *[{"type": "text", "text": ""}] * 16385)]}, "messages", "at most 16384"),
        ({"system": [{"type": "image", "text": ""}]}, "system[0].type", "is not supported"),
        ({"max_tokens": 0}, "max_tokens", "0 is out of range"),
        ({"max_tokens": None}, "max_tokens", "expected `int`"),
        ({"stop_sequences": ["a"] * 5}, "stop_sequences", "at most 4"),
        ({"stop_sequences": [""]}, "stop_sequences[0]", "must not be empty"),
        ({"temperature": -1}, "temperature", "between 0 and 2"),
        ({"stop": "x"}, "stop", "send stop_sequences"),
        ({"n": 2}, "n", "one answer"),
        ({"thinking": {"type": "often"}}, "thinking.type", "is not one of"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens", "at least 1"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type", "define a tool"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema", "is required"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name", "is required"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type", "is not one of"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type", "is not json_schema"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", "run the tools yourself"),
        ({"use_beam_search": True}, "use_beam_search", "not supported"),
    ],
)
def test_what_is_wrong_is_named_by_the_clients_own_field(fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(**fields)

    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(f"{param}: ")
    assert words in error.message


def test_a_body_whose_tokens_are_counted_needs_no_max_tokens_and_has_the_same_prompt() -> None:
    body = {"model": "m", "system": "s", "messages": BODY["messages"], "thinking": {"type": "disabled"}}

    counted = decode_count_tokens(json.dumps(body).encode())

    assert counted.prompt_input() == decoded(**body)[1].prompt_input()


@pytest.mark.parametrize("most", [-1, 40])
def test_tokens_are_counted_of_the_prompt_as_it_would_be_cut(most: int) -> None:
    body = BODY | {"truncate_prompt_tokens": most, "max_tokens": 300}

    counted = decode_count_tokens(json.dumps(body).encode())
    unlimited = decode_count_tokens(json.dumps({**BODY, "truncate_prompt_tokens": most, "max_tokens": None}).encode())

    assert counted.prompt_input() == decoded(**body)[1].prompt_input()
    assert counted.prompt_input().truncation == Truncation(num_tokens=most, output=300)
    assert unlimited.prompt_input().truncation == Truncation(num_tokens=most, output=1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 5, "max_tokens": "x"}, "max_tokens"),
    ],
)
def test_counting_names_what_is_wrong_with_the_cut(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        decode_count_tokens(json.dumps(BODY | fields).encode())

    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_message_says_how_long_it_may_take_and_counting_does_not_ask() -> None:
    chat = decoded(timeout_s=2.5, queue_timeout_s=1.0)[1]
    counted = decode_count_tokens(json.dumps(BODY | {"timeout_s": 2.5}).encode())

    assert (chat.timeout_s, chat.queue_timeout_s) == (2.5, 1.0)
    assert refusal(timeout_s=-1).param == "timeout_s"
    assert counted.timeout_s is None
