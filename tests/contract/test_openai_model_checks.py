"""Checks against the model's numbers."""

import pytest

from quire_contract.openai.decode import decode_request
from quire_contract.openai.errors import ApiError
from quire_contract.openai.model_checks import check_token_ids, check_vocabulary, resolve_max_tokens
from quire_contract.openai.requests import CompletionRequest


@pytest.mark.parametrize("ids", [[], [0], [99, 5]])
def test_ids_inside_the_vocabulary_pass(ids: list[int]) -> None:
    check_token_ids(ids, 100, "prompt")


@pytest.mark.parametrize("wrong", [-1, 100, pytest.param(10**5000, id="huge")])
def test_the_first_unknown_id_is_named(wrong: int) -> None:
    with pytest.raises(ApiError) as caught:
        check_token_ids([1, 2, wrong, 500], 100, "prompt")

    assert caught.value.param == "prompt[2]"
    assert "ids are 0 to 99" in caught.value.message


@pytest.mark.parametrize(
    ("field", "param"),
    [('"stop_token_ids": [5, 100]', "stop_token_ids[1]"), ('"logit_bias": {"100": 1}', "logit_bias[100]")],
)
def test_fields_outside_the_vocabulary_are_named(field: str, param: str) -> None:
    request = decode_request(CompletionRequest, f'{{"model": "m", "prompt": "a", {field}}}'.encode())

    with pytest.raises(ApiError) as caught:
        check_vocabulary(request, 100)

    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("requested", "num_prompt", "allowed"), [(None, 10, 90), (5, 10, 5), (100, 10, 90), (1, 99, 1)]
)
def test_output_is_cut_to_what_fits(requested: int | None, num_prompt: int, allowed: int) -> None:
    assert resolve_max_tokens(requested, num_prompt, 100) == allowed


@pytest.mark.parametrize(
    ("requested", "num_prompt", "param"), [(None, 100, "messages"), (1, 500, "messages"), (101, 5, "max_tokens")]
)
def test_what_cannot_fit_is_refused(requested: int | None, num_prompt: int, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve_max_tokens(requested, num_prompt, 100)

    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, "context_length_exceeded")
    assert "maximum context length" in caught.value.message
