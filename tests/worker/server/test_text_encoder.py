"""Texts and pairs as ids, against the tokenizer's own truncation, which the product cannot use: it is one setting for all threads."""

from typing import Any

import pytest

from quire_contract.model_folder import load_tokenizer
from quire_contract.openai.errors import ApiError
from quire_worker.server.text_encoder import TextEncoder
from tests.worker.embedding_models import minilm

LONGEST = 40
TEXTS = ["", "hi", "a longer text, with several words", "word " * 100, "Ünïcödé 東京 🎉"]


def tokenizer() -> Any:
    return load_tokenizer((minilm() / "tokenizer.json").read_bytes())


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(tokenizer(), 30522, LONGEST)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("length", [2, 3, 9, -1])
def test_a_cut_text_keeps_its_special_tokens(encoder: TextEncoder, text: str, length: int) -> None:
    own = tokenizer()
    own.enable_truncation(LONGEST if length == -1 else length)

    assert encoder.one(text, encoder.cut(length), "input") == own.encode(text).ids


@pytest.mark.parametrize("first", TEXTS)
@pytest.mark.parametrize("second", TEXTS)
@pytest.mark.parametrize("length", [9, 12, 13, 40])
def test_a_cut_pair_loses_what_transformers_would_take(
    encoder: TextEncoder, first: str, second: str, length: int
) -> None:
    own = tokenizer()
    own.enable_truncation(length, strategy="longest_first")
    expected = own.encode(first, second)

    ids, start = encoder.pair(first, second, encoder.cut(length), "documents[0]")

    assert ids == expected.ids
    assert [int(i >= start) for i in range(len(ids))] == expected.type_ids


def test_a_text_that_fits_is_what_the_tokenizer_makes_of_it(encoder: TextEncoder) -> None:
    cut = encoder.cut(None)

    assert encoder.one(TEXTS[2], cut, "input") == tokenizer().encode(TEXTS[2]).ids
    assert encoder.one("hi", cut, "input", add_special_tokens=False) == tokenizer().encode("hi").ids[1:-1]
    assert encoder.one([5, 6], cut, "input") == [5, 6]
    assert encoder.one([5, 6, 7], encoder.cut(2), "input") == [5, 6]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("word " * 39, "41 tokens"),
        ([1] * 41, "41 tokens"),
        ("a" * (LONGEST * 128 + 1), "5121 characters"),
    ],
)
def test_a_text_that_does_not_fit_is_refused_with_what_to_send(encoder: TextEncoder, value: Any, words: str) -> None:
    with pytest.raises(ApiError) as refusal:
        encoder.one(value, encoder.cut(None), "input[3]")

    assert (refusal.value.status, refusal.value.param, refusal.value.code) == (
        400,
        "input[3]",
        "context_length_exceeded",
    )
    assert words in refusal.value.message
    assert "truncate_prompt_tokens: -1" in refusal.value.message


def test_a_pair_that_does_not_fit_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ApiError, match=r"documents\[0\]: has 41 tokens"):
        encoder.pair("word " * 20, "word " * 18, encoder.cut(None), "documents[0]")


@pytest.mark.parametrize(("length", "words"), [(LONGEST + 1, "at most 40"), (1, "at least 2")])
def test_a_length_that_cannot_be_cut_to_is_refused(encoder: TextEncoder, length: int, words: str) -> None:
    with pytest.raises(ApiError, match=words) as refusal:
        encoder.one("hi", encoder.cut(length), "input")

    assert refusal.value.param == "truncate_prompt_tokens"


def test_ids_that_the_model_does_not_have_and_empty_inputs_are_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ApiError, match=r"input\[0\]\[1\]: 30522 is not a token id"):
        encoder.one([3, 30522], encoder.cut(None), "input[0]")
    with pytest.raises(ApiError, match="input: is empty"):
        encoder.one("", encoder.cut(None), "input", add_special_tokens=False)
