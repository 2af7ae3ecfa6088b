"""POST /v1/responses as a chat: items become messages, fields keep their meaning, and refusals speak of the client's own fields."""

import json
from typing import Any

import pytest

from quire_contract.openai.chat_shaped import SHARED_FIELDS
from quire_contract.openai.errors import ApiError
from quire_contract.openai.messages import template_message
from quire_contract.openai.requests import ChatCompletionRequest
from quire_contract.openai.responses_chat import decode_responses, wants_logprobs

BODY: dict[str, Any] = {"model": "m", "input": "hi"}


def decoded(**fields: Any) -> Any:
    return decode_responses(json.dumps(BODY | fields).encode())


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decoded(**fields)
    return caught.value


def seen(**fields: Any) -> list[dict[str, Any]]:
    """The messages as a template sees them."""
    return [template_message(message) for message in decoded(**fields)[1].messages]


def test_a_string_is_the_users_message_and_instructions_come_first() -> None:
    assert seen(instructions="be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


def test_instructions_share_one_message_with_a_system_message_that_opens_the_input() -> None:
    items = [{"role": "developer", "content": "speak French"}, {"role": "user", "content": "hi"}]

    assert seen(input=items, instructions="be brief") == [
        {"role": "developer", "content": "be brief\nspeak French"},
        {"role": "user", "content": "hi"},
    ]


def test_one_turn_of_the_assistant_is_one_message_however_many_items_it_had() -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "how warm is it?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "look"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "warmth", "arguments": '{"city": "Bonn"}'},
        {"type": "function_call", "id": "fc_2", "call_id": "b", "name": "warmth", "arguments": '{"city": "Köln"}'},
        {"type": "function_call_output", "call_id": "a", "output": "20"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "21"}]},
    ]  # fmt: skip

    messages = seen(input=items)

    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["content"] == "I look."
    assert messages[1]["reasoning_content"] == "look"
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["a", "b"]
    assert messages[1]["tool_calls"][1]["function"] == {"name": "warmth", "arguments": {"city": "Köln"}}
    assert messages[2:] == [
        {"role": "tool", "content": "20", "tool_call_id": "a"},
        {"role": "tool", "content": "21", "tool_call_id": "b"},
    ]


def test_two_answers_in_a_row_stay_two_messages() -> None:
    items = [{"role": "assistant", "content": "one"}, {"role": "assistant", "content": "two"}]

    assert [message["content"] for message in seen(input=items)] == ["one", "two"]


def test_reasoning_that_only_its_author_can_read_is_left_out() -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "x"},
    ]

    assert seen(input=items) == [{"role": "user", "content": "hi"}]


def test_fields_keep_their_meaning() -> None:
    request, chat = decoded(
        max_output_tokens=7.0, temperature=0.5, top_p=0.9, stream=True, seed=3, stop=["x"], top_k=4, user="u",
        metadata={"a": "b"}, store=True, truncation="auto", include=["reasoning.encrypted_content"],
    )  # fmt: skip

    assert (chat.max_completion_tokens, chat.temperature, chat.top_p, chat.stream) == (7, 0.5, 0.9, True)
    assert (chat.seed, chat.stop, chat.top_k, chat.user) == (3, ["x"], 4, "u")
    assert (request.metadata, chat.num_logprobs, chat.num_choices) == ({"a": "b"}, None, 1)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, 3),
        ({"top_logprobs": 2}, 2),
        ({"top_logprobs": 0}, None),
    ],
)
def test_log_probabilities_are_asked_for_by_include_or_by_a_number(fields: dict[str, Any], count: int | None) -> None:
    request, chat = decoded(**fields)

    assert (chat.num_logprobs, wants_logprobs(request)) == (count, count is not None)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": []}, "input", "at least one item"),
        ({"input": 3}, "input", "expected `str | array`"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is required"),
        ({"input": [{"content": "x"}]}, "input[0].role", "is required"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "'tool' is not one of"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "nothing is stored"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "'web_search_call' is not supported"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", "reads text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", "is required"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id", "is required"),
        ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output", "is required"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}] * 16385}]}, "input", "at most 16384"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
        ({"conversation": {"id": "c"}}, "conversation", "nothing is stored"),
        ({"background": True}, "background", "no answer can be fetched later"),
        ({"prompt": {"id": "p"}}, "prompt", "send input"),
        ({"n": 2}, "n", "one answer"),
        ({"max_tokens": 5}, "max_tokens", "send max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens", "0 is out of range"),
        ({"temperature": 3}, "temperature", "between 0 and 2"),
        ({"top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
        ({"include": ["everything"]}, "include[0]", "is not one of"),
        ({"truncation": "some"}, "truncation", "is not one of"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16"),
        ({"metadata": {"k" * 65: ""}}, "metadata['" + "k" * 64 + "']", "too long"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "needs stream: true"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "run it yourself"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "is required"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name", "is required"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "functions only"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "is not one of"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "is required"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_the_clients_own_field(fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(**fields)

    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(f"{param}: ")
    assert words in error.message


def test_a_model_is_required() -> None:
    with pytest.raises(ApiError, match="model: is required"):
        decode_responses(b'{"input": "hi"}')


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": None, "background": False, "n": 1, "tools": [], "tool_choice": "auto"},
        {"text": {"format": {"type": "text"}, "verbosity": "low"}, "reasoning": {"effort": None}},
        {"service_tier": "auto", "prompt_cache_key": "x", "safety_identifier": "x", "max_tool_calls": 3},
    ],
)
def test_what_asks_for_nothing_is_let_through(fields: dict[str, Any]) -> None:
    assert decoded(**fields)[1] == decoded()[1]


def test_every_shared_field_is_a_chats_and_is_taken_here() -> None:
    times = {"timeout_s": 2.5, "queue_timeout_s": 1.0, "repetition_detection": {"max_pattern_size": 4, "min_count": 3}}

    chat = decoded(logit_bias={"5": 1.5}, cache_salt="s", priority=3, **times)[1]

    assert set(SHARED_FIELDS) <= set(ChatCompletionRequest.__struct_fields__)
    assert (chat.logit_bias, chat.cache_salt, chat.priority) == ({"5": 1.5}, "s", 3)
    assert (chat.timeout_s, chat.queue_timeout_s) == (2.5, 1.0)
    assert chat.repetition_detection is not None
    assert (chat.repetition_detection.max_pattern_size, chat.repetition_detection.min_count) == (4, 3)
