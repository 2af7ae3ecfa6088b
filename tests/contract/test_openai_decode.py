"""A body is decoded, or refused with a 400 that names the field and the reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_contract.openai.decode import decode_request, decode_routing_fields
from quire_contract.openai.errors import ApiError
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    logit_bias_items,
    stop_strings,
)
from quire_contract.openai.unsupported import UNSUPPORTED
from quire_contract.prompt_input import ChatInput, TextInput


def chat_body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def completion_body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "hi", **fields}).encode()


def refusal_of_chat(body: bytes, limits: Limits | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode_request(ChatCompletionRequest, body, limits or Limits())
    return caught.value


def refusal_of_completion(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode_request(CompletionRequest, body)
    return caught.value


def test_a_full_chat_request_is_decoded() -> None:
    body = chat_body(
        stream=True,
        stream_options={"include_usage": True},
        n=2,
        max_completion_tokens=9,
        temperature=0,
        top_p=0.5,
        top_k=-1,
        seed=-5,
        stop=["a", "b"],
        logit_bias={"7": -100, "3": 2.5},
        logprobs=True,
        top_logprobs=3,
        metadata={"anything": 1},
    )

    request = decode_request(ChatCompletionRequest, body)

    assert (request.stream, request.num_choices, request.requested_max_tokens, request.num_logprobs) == (True, 2, 9, 3)
    assert (request.temperature, request.top_k, request.seed) == (0.0, -1, -5)
    assert stop_strings(request) == ["a", "b"]
    assert logit_bias_items(request) == [(3, 2.5), (7, -100.0)]


def test_null_means_absent_everywhere() -> None:
    names = [name for name in ChatCompletionRequest.__struct_fields__ if name not in ("model", "messages")]

    request = decode_request(ChatCompletionRequest, chat_body(**dict.fromkeys([*names, *UNSUPPORTED])))

    assert request == decode_request(ChatCompletionRequest, chat_body())


def test_whole_floats_are_integers() -> None:
    request = decode_request(ChatCompletionRequest, chat_body(n=2.0, max_tokens=1e3, temperature=1, seed=7.0))

    assert (request.n, request.max_tokens, request.temperature, request.seed) == (2, 1000, 1.0, 7)


@pytest.mark.parametrize("body", [b"1.0", b'{"model":"m","n":1.0[]}', b'{"model":"m","n":1.0,'])
def test_what_is_wrong_beside_a_float_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        decode_routing_fields(body)

    assert caught.value.status == 400


def test_whole_floats_beside_an_integer_of_63_bits_leave_it_alone() -> None:
    request = decode_request(ChatCompletionRequest, chat_body(n=2.0, seed=2**63 - 1))

    assert (request.n, request.seed) == (2, 2**63 - 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (b'"n": 1.5, "unknown": 1e999', "n"),
        (b'"n": 1e999', "n"),
        (b'"tools": [1e999]', "tools[0]"),
        (b'"top_k": 1' + b"0" * 400, "top_k"),
        (b'"min_tokens": 1' + b"0" * 400 + b', "max_tokens": 2', "min_tokens"),
    ],
)
def test_a_number_too_large_for_any_type_is_refused_in_few_words(fields: bytes, param: str) -> None:
    error = refusal_of_chat(chat_body()[:-1] + b", " + fields + b"}")

    assert (error.status, error.param) == (400, param)
    assert len(error.message) < 200


def test_a_number_too_large_in_an_unknown_field_is_ignored() -> None:
    request = decode_request(ChatCompletionRequest, chat_body(n=2.0)[:-1] + b', "unknown": 1e999}')

    assert request.n == 2


def test_of_several_constraints_that_are_not_supported_the_first_in_the_body_is_named() -> None:
    error = refusal_of_chat(chat_body(echo=True, tools=[1], guided_regex="a", bad_words=["b"]))

    assert error.param == "echo"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"  ", "empty"),
        (b"hello", "not valid JSON"),
        (b'{"model": "m",', "ends too early"),
        (b"{} {}", "trailing"),
        (b'{"model": "\xff"}', "not UTF-8 (byte 11)"),
        (b'{"unknown": "\xff"}', "not UTF-8"),
        (b"[]", "JSON object"),
        (b'"text"', "JSON object"),
        (b'{"zz": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b'{"temperature": NaN}', "not valid JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, words: str) -> None:
    error = refusal_of_chat(body)

    assert error.status == 400
    assert error.param is None
    assert words in error.message


def test_a_body_over_the_limit_is_refused_unread() -> None:
    error = refusal_of_chat(b"\xff" * 101, Limits(max_body_bytes=100))

    assert (error.status, error.code) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": 5, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": "hi"}, "messages"),
        ({"model": None}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"n": True}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": "1"}, "n"),
        ({"stream": 1}, "stream"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": {"a": 1}}, "stop"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stop_token_ids": [1, 2.5]}, "stop_token_ids[1]"),
    ],
)
def test_a_wrong_type_is_refused_by_path(fields: dict[str, Any], param: str) -> None:
    error = refusal_of_chat(chat_body(**fields))

    assert error.status == 400
    assert error.param == param
    assert error.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-320}, "repetition_penalty"),
        ({"repetition_penalty": 11}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 10_000}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"stop": [str(i) for i in range(100)]}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x" * 257]}, "stop[0]"),
        ({"stop_token_ids": list(range(129))}, "stop_token_ids"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
        ({"logit_bias": {"-5": 1}}, "logit_bias[-5]"),
        ({"logit_bias": {"x": 1}}, "logit_bias[x]"),
        ({"logit_bias": {"٣": 1}}, "logit_bias[٣]"),
        ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 0, "logprobs": False}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": None, "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"cache_salt": "x" * 1025}, "cache_salt"),
        ({"priority": 2**53}, "priority"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": 1e300}, "timeout_s"),
        ({"queue_timeout_s": -1}, "queue_timeout_s"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_a_value_out_of_range_is_refused_by_path(fields: dict[str, Any], param: str) -> None:
    error = refusal_of_chat(chat_body(**fields))

    assert error.status == 400
    assert error.type == "invalid_request_error"
    assert error.param == param
    assert error.message.startswith(f"{param}: ")
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [[1], "a"]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"prompt": ["x"] * 200, "n": 16}, "n"),
        ({"prompt": ["x"] * 17, "allowed_token_ids": [1] * 65_536}, "allowed_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_a_wrong_completion_is_refused_by_path(fields: dict[str, Any], param: str) -> None:
    error = refusal_of_completion(completion_body(**fields))

    assert error.status == 400
    assert error.param == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("guided_json", {}),
        ("guided_regex", "a+"),
        ("prompt_logprob_token_ids", [[1]]),
        ("json_schema", {}),
        ("choice", ["a"]),
        ("modalities", ["text", "audio"]),
        ("truncation_side", "right"),
        ("spaces_between_special_tokens", False),
        ("vllm_xargs", {"a": 1}),
        ("use_beam_search", True),
        ("chat_template", "{{ x }}"),
    ],
)
def test_a_constraint_that_is_not_supported_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal_of_chat(chat_body(**{name: value}))

    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")


def test_harmless_values_of_unsupported_fields_pass() -> None:
    harmless = {
        "response_format": {"type": "text"},
        "tool_choice": "none",
        "modalities": ["text"],
        "bad_words": [],
        "echo": False,
        "suffix": "",
        "use_beam_search": False,
        "length_penalty": 1.0,
    }

    request = decode_request(ChatCompletionRequest, chat_body(**harmless))

    assert request.model == "m"


def test_a_table_row_names_no_field_that_every_request_takes() -> None:
    taken_by_both = set(ChatCompletionRequest.__struct_fields__) & set(CompletionRequest.__struct_fields__)

    assert not taken_by_both & UNSUPPORTED.keys()


def test_best_of_equal_to_n_passes() -> None:
    request = decode_request(CompletionRequest, completion_body(best_of=2, n=2))

    assert request.num_choices == 2


def test_a_completion_has_openais_default_length_and_a_chat_has_none() -> None:
    completion = decode_request(CompletionRequest, completion_body())
    chat = decode_request(ChatCompletionRequest, chat_body())

    assert (completion.requested_max_tokens, chat.requested_max_tokens) == (16, None)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_each_form_of_a_prompt_is_read(prompt: Any, prompts: list[Any]) -> None:
    request = decode_request(CompletionRequest, completion_body(prompt=prompt, add_special_tokens=False))

    assert request.prompt_input() == TextInput(prompts=prompts, add_special_tokens=False)
    assert request.num_prompts == len(prompts)


def test_messages_reach_the_template_in_one_form() -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "c1", "unknown": 1},
    ]

    source = decode_request(ChatCompletionRequest, chat_body(messages=messages)).prompt_input()

    assert isinstance(source, ChatInput)
    assert source.messages == [
        {"role": "system", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "thinking": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize("arguments", ["not json", "[1]", "", "[" * 100_000])
def test_tool_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    calls = [{"function": {"name": "f", "arguments": arguments}}]

    source = decode_request(
        ChatCompletionRequest, chat_body(messages=[{"role": "assistant", "tool_calls": calls}])
    ).prompt_input()

    assert isinstance(source, ChatInput)
    assert source.messages[0]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    "fields", [{}, {"continue_final_message": True}, {"chat_template_kwargs": {"enable_thinking": False}}]
)
def test_a_router_reads_the_same_prompt_from_a_chat(fields: dict[str, Any]) -> None:
    body = chat_body(stream=True, tools=None, **fields)

    routing = decode_routing_fields(body)

    assert routing.prompt_input() == decode_request(ChatCompletionRequest, body).prompt_input()
    assert (routing.model, routing.stream) == ("m", True)


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2]]])
def test_a_router_reads_the_same_prompt_from_a_completion(prompt: Any) -> None:
    body = completion_body(prompt=prompt)

    assert decode_routing_fields(body).prompt_input() == decode_request(CompletionRequest, body).prompt_input()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"model": "m"}', b'{"model": 5, "prompt": "a"}', b'{"model": "m", "prompt": []}']
)
def test_a_router_refuses_what_no_worker_takes(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        decode_routing_fields(body)

    assert caught.value.status == 400


def test_tokenize_takes_a_prompt_or_messages() -> None:
    text = decode_request(TokenizeRequest, b'{"prompt": "a"}')
    chat = decode_request(TokenizeRequest, b'{"model": "m", "messages": [{"role": "user", "content": "a"}]}')

    assert isinstance(text.prompt_input(), TextInput)
    assert isinstance(chat.prompt_input(), ChatInput)
    with pytest.raises(ApiError, match="either prompt or messages"):
        decode_request(TokenizeRequest, b'{"model": "m"}')


def test_detokenize_takes_ids() -> None:
    request = decode_request(DetokenizeRequest, b'{"tokens": [1, 2]}')

    assert request.tokens == [1, 2]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**64), 10**400])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELD_NAMES = st.sampled_from([*ChatCompletionRequest.__struct_fields__, *UNSUPPORTED])


@given(fields=st.dictionaries(FIELD_NAMES, JSON, max_size=4))
def test_no_value_anywhere_raises_anything_but_a_refusal(fields: dict[str, Any]) -> None:
    body = chat_body(**fields)

    try:
        request = decode_request(ChatCompletionRequest, body)
    except ApiError as error:
        assert error.status == 400
        assert json.loads(error.body())["error"]["message"]
    else:
        assert request.prompt_input()


@given(body=st.binary(max_size=60))
def test_random_bytes_are_refused(body: bytes) -> None:
    assert refusal_of_chat(body).status == 400
