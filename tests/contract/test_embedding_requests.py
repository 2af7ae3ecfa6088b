"""Bodies of embeddings, rerank and score: what is taken and what is refused, by name."""

from typing import Any

import msgspec
import pytest

from quire_contract.openai.embedding_requests import (
    MAX_INPUTS,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
    decode_embedding_request,
    input_list,
)
from quire_contract.openai.errors import ApiError
from quire_contract.openai.limits import Limits


def embedding(value: Any, **fields: Any) -> EmbeddingRequest:
    return decode_embedding_request(EmbeddingRequest, msgspec.json.encode({"model": "m", "input": value, **fields}))


def rerank(**fields: Any) -> RerankRequest:
    body = {"query": "q", "documents": ["a", {"text": "b", "title": "ignored"}], **fields}
    return decode_embedding_request(RerankRequest, msgspec.json.encode(body))


def score(first: Any, second: Any, **fields: Any) -> ScoreRequest:
    return decode_embedding_request(ScoreRequest, msgspec.json.encode({"text_1": first, "text_2": second, **fields}))


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a"] * MAX_INPUTS, ["a"] * MAX_INPUTS),
    ],
)
def test_every_form_of_openais_input_is_taken(value: Any, inputs: Any) -> None:
    assert input_list(embedding(value)) == inputs


@pytest.mark.parametrize(
    ("value", "fields", "param"),
    [
        ([], {}, "input"),
        (["a", 1], {}, "input[1]"),
        ([[1], "a"], {}, "input[1]"),
        ([[1], []], {}, "input[1]"),
        (["a"] * (MAX_INPUTS + 1), {}, "input"),
        (5, {}, "input"),
        (None, {}, "input"),
        ([1.5], {}, "input[0]"),
        ("a", {"encoding_format": "int8"}, "encoding_format"),
        ("a", {"dimensions": 0}, "dimensions"),
        ("a", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("a", {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ("a", {"normalize": "yes"}, "normalize"),
    ],
)
def test_what_cannot_be_an_embedding_request_is_refused_by_name(value: Any, fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as refusal:
        embedding(value, **fields)

    assert (refusal.value.status, refusal.value.param) == (400, param)


def test_fields_that_are_null_are_absent_and_unknown_ones_ignored() -> None:
    request = embedding("a", encoding_format=None, dimensions=None, user=None, something_new=1)

    assert (request.encoding_format, request.dimensions) == (None, None)


def test_a_body_over_the_limit_is_413() -> None:
    with pytest.raises(ApiError) as refusal:
        decode_embedding_request(EmbeddingRequest, b" " * 100, Limits(max_body_bytes=99))

    assert refusal.value.status == 413


def test_documents_are_texts_or_objects_with_one() -> None:
    assert rerank().texts == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * (MAX_INPUTS + 1)}, "documents"),
        ({"documents": [{"body": "a"}]}, "documents[0].text"),
        ({"documents": "a"}, "documents"),
        ({"top_n": -1}, "top_n"),
        ({"query": None}, "query"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
def test_what_cannot_be_a_rerank_request_is_refused_by_name(fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as refusal:
        rerank(**fields)

    assert (refusal.value.status, refusal.value.param) == (400, param)


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("a", "b", [("a", "b")]),
        ("a", ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a"], ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a", "b"], ["c", "d"], [("a", "c"), ("b", "d")]),
    ],
)
def test_one_text_is_scored_against_one_or_many_and_many_against_as_many(first: Any, second: Any, pairs: Any) -> None:
    assert score(first, second).pairs == pairs


@pytest.mark.parametrize(
    ("first", "second", "param"),
    [
        (["a", "b"], ["c"], "text_2"),
        (["a", "b"], "c", "text_2"),
        ([], "c", "text_1"),
        ("a", [], "text_2"),
        ("a", ["b"] * (MAX_INPUTS + 1), "text_2"),
        (1, "a", "text_1"),
    ],
)
def test_what_cannot_be_a_score_request_is_refused_by_name(first: Any, second: Any, param: str) -> None:
    with pytest.raises(ApiError) as refusal:
        score(first, second)

    assert (refusal.value.status, refusal.value.param) == (400, param)
