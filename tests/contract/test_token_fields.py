"""Fields that speak of single tokens: in range or refused by path, and truncation that router and worker do alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire_contract.openai.decode import decode_request, decode_routing_fields
from quire_contract.openai.errors import ApiError
from quire_contract.openai.limits import Limits
from quire_contract.openai.model_checks import check_prompt_logprobs, check_vocabulary
from quire_contract.openai.requests import ChatCompletionRequest, CompletionRequest, TokenizeRequest
from quire_contract.prompt import PromptRenderer
from quire_contract.prompt_bundle import PromptBundle

MESSAGES = [{"role": "user", "content": "one two three four five six"}]


def completion(**fields: Any) -> CompletionRequest:
    return decode_request(CompletionRequest, json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def chat(**fields: Any) -> ChatCompletionRequest:
    return decode_request(ChatCompletionRequest, json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


@pytest.fixture
def renderer(model_dir: Path) -> PromptRenderer:
    return PromptRenderer(
        PromptBundle.from_model_dir(model_dir, block_size=16, max_model_len=64, served_model_names=["m"])
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [0] * 65_537}, "allowed_token_ids"),
        ({"allowed_token_ids": ["a"]}, "allowed_token_ids[0]"),
        ({"bad_words": ["a", ""]}, "bad_words[1]"),
        ({"bad_words": ["a"] * 129}, "bad_words"),
        ({"bad_words": ["a" * 129]}, "bad_words[0]"),
        ({"bad_words": "a"}, "bad_words"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"logprob_token_ids": [1] * 129, "logprobs": True}, "logprob_token_ids"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"return_token_ids": 1}, "return_token_ids"),
        ({"repetition_detection": {"max_pattern_size": 257, "min_count": 2}}, "repetition_detection.max_pattern_size"),
        ({"repetition_detection": {"max_pattern_size": 4, "min_count": 1}}, "repetition_detection.min_count"),
        ({"repetition_detection": {"max_pattern_size": 4}}, "repetition_detection.min_count"),
        (
            {"repetition_detection": {"max_pattern_size": 4, "min_pattern_size": 5, "min_count": 2}},
            "repetition_detection.min_pattern_size",
        ),
    ],
)
def test_a_token_field_out_of_range_is_refused_by_path(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)

    assert (caught.value.status, caught.value.param) == (400, param)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("field", ["allowed_token_ids", "logprob_token_ids", "stop_token_ids"])
@pytest.mark.parametrize("token", [-1, 300, 2**70])
def test_ids_outside_the_vocabulary_are_refused_by_path(field: str, token: int) -> None:
    request = completion(logprobs=0, **{field: [7, token]})

    with pytest.raises(ApiError) as caught:
        check_vocabulary(request, 300)

    assert caught.value.param == f"{field}[1]"


def test_an_echo_shows_as_many_logprobs_as_the_output() -> None:
    assert completion(echo=True, logprobs=3).num_prompt_logprobs == 3
    assert completion(echo=True, logprobs=3, prompt_logprobs=5).num_prompt_logprobs == 5
    assert completion(echo=True).num_prompt_logprobs is None
    assert completion(logprobs=3).num_prompt_logprobs is None
    assert chat(prompt_logprobs=0).num_prompt_logprobs == 0


def test_log_probabilities_of_prompts_are_bounded_over_all_choices() -> None:
    limits = Limits(max_prompt_logprob_entries=1000)

    check_prompt_logprobs(completion(prompt_logprobs=4, n=2), 100, limits)
    with pytest.raises(ApiError, match="1010 values") as caught:
        check_prompt_logprobs(completion(prompt_logprobs=4, n=2), 101, limits)

    assert caught.value.param == "prompt_logprobs"


def test_the_last_tokens_of_a_prompt_are_kept(renderer: PromptRenderer) -> None:
    whole = renderer.request_prompts(completion(prompt="one two three four five"))[0]
    talk = renderer.request_prompts(chat())[0]

    def cut(**fields: Any) -> list[list[int]]:
        return renderer.request_prompts(completion(**fields))

    assert cut(prompt="one two three four five", truncate_prompt_tokens=3) == [whole[-3:]]
    assert cut(prompt="one two three four five", truncate_prompt_tokens=10**9) == [whole]
    assert cut(prompt=[whole, whole[:2]], truncate_prompt_tokens=3) == [whole[-3:], whole[:2]]
    assert renderer.request_prompts(chat(truncate_prompt_tokens=5))[0] == talk[-5:]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "one two three four five " * 9, "truncate_prompt_tokens": 7},
        {"prompt": "one two three four five " * 9, "truncate_prompt_tokens": -1, "max_tokens": 50},
        {"prompt": "one two three four five " * 9, "truncate_prompt_tokens": -1},
        {"messages": MESSAGES, "truncate_prompt_tokens": 9},
        {"messages": MESSAGES * 9, "truncate_prompt_tokens": -1, "max_completion_tokens": 20},
    ],
)
def test_tokenizing_cuts_a_prompt_as_the_request_itself_would(renderer: PromptRenderer, fields: dict[str, Any]) -> None:
    asked = decode_request(TokenizeRequest, json.dumps({"model": "m", **fields}).encode())
    sent = completion(**fields) if "prompt" in fields else chat(**{"messages": MESSAGES, **fields})

    assert renderer.request_prompts(asked) == renderer.request_prompts(sent)


def test_tokenizing_refuses_to_cut_a_prompt_to_nothing() -> None:
    with pytest.raises(ApiError) as refused:
        decode_request(TokenizeRequest, b'{"prompt": "a", "truncate_prompt_tokens": 0}')

    assert refused.value.param == "truncate_prompt_tokens"


def test_minus_one_keeps_what_fits_beside_the_output(renderer: PromptRenderer) -> None:
    ids = list(range(5, 105))

    def kept(**fields: Any) -> int:
        return len(renderer.request_prompts(completion(prompt=ids, truncate_prompt_tokens=-1, **fields))[0])

    assert kept(max_tokens=24) == 40
    assert kept() == 48
    assert kept(max_tokens=0, echo=True) == 63
    assert kept(max_tokens=10**6) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "one two three four five " * 9, "truncate_prompt_tokens": 7},
        {"prompt": [list(range(5, 105))], "truncate_prompt_tokens": -1, "max_tokens": 10},
        {"prompt": list(range(5, 105)), "truncate_prompt_tokens": -1},
        {"messages": MESSAGES, "truncate_prompt_tokens": 9},
        {"messages": MESSAGES * 9, "truncate_prompt_tokens": -1, "max_completion_tokens": 20},
        {"messages": MESSAGES * 9, "truncate_prompt_tokens": -1},
    ],
)
def test_a_router_cuts_prompts_as_the_worker_does(renderer: PromptRenderer, fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", **fields}).encode()
    kind = ChatCompletionRequest if "messages" in fields else CompletionRequest

    by_worker = renderer.request_prompts(decode_request(kind, body))
    by_router = renderer.request_prompts(decode_routing_fields(body))

    assert by_router == by_worker
    assert len(by_worker[0]) < 64


@pytest.mark.parametrize("num_tokens", [0, -5, 10**30])
def test_a_router_survives_a_truncation_that_no_worker_takes(renderer: PromptRenderer, num_tokens: int) -> None:
    body = json.dumps({"model": "m", "prompt": [1, 2, 3], "truncate_prompt_tokens": num_tokens}).encode()

    assert renderer.request_prompts(decode_routing_fields(body)) == [[1, 2, 3]]


def test_a_cache_salt_may_be_base64_of_any_length_up_to_1024() -> None:
    salt = "+/=" * 341 + "A"

    assert completion(cache_salt=salt).cache_salt == salt
    with pytest.raises(ApiError, match="cache_salt: has 1025"):
        completion(cache_salt=salt + "A")


def test_bad_words_are_spelt_at_the_beginning_and_after_a_space(renderer: PromptRenderer) -> None:
    found = renderer.word_tokens(["hello", " hello", "hello"])

    assert [renderer.decode(ids) for ids in found] == ["hello", " hello"]
