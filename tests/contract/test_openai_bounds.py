"""The ranges that /openapi.json shows are those that bodies are checked by, to the edge."""

import json
import math
from typing import Any

import pytest

from quire_contract.openai.bounds import Bound, number_bounds, size_schemas
from quire_contract.openai.decode import decode_request
from quire_contract.openai.errors import ApiError
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import ChatCompletionRequest, CompletionRequest

LIMITS = Limits()
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}
WHOLE = {"n", "max_tokens", "max_completion_tokens", "min_tokens", "seed", "logprobs", "top_logprobs", "top_k"}


def refusal(field: str, value: Any) -> str | None:
    """The field that is refused with this value, if any is."""
    kind: Any = CompletionRequest if field == "logprobs" else ChatCompletionRequest
    body = {**(COMPLETION if field == "logprobs" else CHAT), field: value}
    if field == "top_logprobs":
        body["logprobs"] = True
    try:
        decode_request(kind, json.dumps(body).encode())
    except ApiError as error:
        return error.param
    return None


def beyond(field: str, edge: float, direction: int) -> float:
    return edge + direction if field in WHOLE else math.nextafter(edge, direction * math.inf)


@pytest.mark.parametrize(("field", "bound"), number_bounds(LIMITS).items())
def test_a_number_is_taken_to_its_edges_and_no_further(field: str, bound: Bound) -> None:
    low = beyond(field, bound.low, 1) if bound.is_low_excluded else bound.low

    assert refusal(field, low) is None
    assert refusal(field, beyond(field, low, -1)) == field
    if bound.high is not None:
        assert refusal(field, bound.high) is None
        assert refusal(field, beyond(field, bound.high, 1)) == field


@pytest.mark.parametrize(
    ("field", "most", "more"),
    [
        ("stop", ["x" * 256] * 4, ["x"] * 5),
        ("stop", "x" * 256, "x" * 257),
        ("stop_token_ids", [1] * 128, [1] * 129),
        ("logit_bias", {str(i): 100 for i in range(1024)}, {str(i): 1 for i in range(1025)}),
        ("cache_salt", "x" * 1024, "x" * 1025),
        ("messages", CHAT["messages"] * 4096, CHAT["messages"] * 4097),
    ],
)
def test_a_list_or_a_text_is_taken_to_its_size_and_no_further(field: str, most: Any, more: Any) -> None:
    sizes = {value for key, value in size_schemas(LIMITS)[field].items() if key.startswith("max")}

    assert refusal(field, most) is None
    assert refusal(field, more) == field
    assert len(most) in sizes


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (Bound(low=1), "at least 1"),
        (Bound(low=0, high=2), "between 0 and 2"),
        (Bound(low=0, high=1, is_low_excluded=True), "greater than 0 and at most 1"),
    ],
)
def test_a_bound_says_what_is_allowed(bound: Bound, words: str) -> None:
    assert bound.words == words
    assert not bound.holds(math.nan)
