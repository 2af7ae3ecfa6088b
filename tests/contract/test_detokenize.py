"""Text from tokens: whole and streamed agree with each other and with the tokenizer's own decode."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quire_contract.detokenize import Detokenizer

TEXTS = [
    "the quick brown fox",
    "  leading and   inner spaces  ",
    "日本語のテスト 😀👍🏽 done",
    "héllo\nwörld\t\tünïcode",
    "",
    " the",
    "a\u0301 combining, \u200d joiner, \ufffd itself",
]
KINDS = ["byte_level", "llama_like", "metaspace", "wordpiece"]


def detokenizer_of(tokenizer: Tokenizer) -> Detokenizer:
    return Detokenizer(tokenizer, tokenizer.to_str().encode())


def streamed(detokenizer: Detokenizer, ids: list[int], **options: object) -> list[str]:
    stream = detokenizer.stream(**options)  # type: ignore[arg-type]
    return [*[stream.push(token) for token in ids], stream.finish()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
def test_random_ids_stream_to_their_whole_decode(kind: str, skip: bool, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    detokenizer, rng = detokenizer_of(tokenizer), random.Random(1)
    cases = [[rng.randrange(tokenizer.get_vocab_size() + 3) for _ in range(rng.randrange(1, 30))] for _ in range(300)]

    joined = ["".join(streamed(detokenizer, ids, skip_special_tokens=skip)) for ids in cases]

    assert joined == [detokenizer.decode(ids, skip_special_tokens=skip) for ids in cases]


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "wordpiece"])
@pytest.mark.parametrize("skip", [True, False])
def test_random_ids_decode_as_the_tokenizer_does(kind: str, skip: bool, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    detokenizer, rng = detokenizer_of(tokenizer), random.Random(2)
    cases = [[rng.randrange(tokenizer.get_vocab_size() + 3) for _ in range(rng.randrange(1, 30))] for _ in range(300)]

    decoded = [detokenizer.decode(ids, skip_special_tokens=skip) for ids in cases]

    assert decoded == [tokenizer.decode(ids, skip_special_tokens=skip) for ids in cases]


def test_byte_tokens_decode_as_the_tokenizer_does_unless_a_run_mixes_good_and_bad(llama_like: Tokenizer) -> None:
    detokenizer, rng = detokenizer_of(llama_like), random.Random(3)
    byte_runs = [[llama_like.token_to_id(f"<0x{byte:02X}>") for byte in char.encode()] for char in "é日😀\n"]
    bad_runs = [
        [llama_like.token_to_id(token) for token in run]
        for run in (["<0xE6>"], ["<0xFF>", "<0x97>"], ["<0xF0>", "<0x9F>"])
    ]
    words = [[token] for token in range(259, llama_like.get_vocab_size())]
    cases = [
        [token for _ in range(8) for part in (rng.choice(byte_runs + bad_runs), rng.choice(words)) for token in part]
        for _ in range(300)
    ]

    decoded = [detokenizer.decode(ids) for ids in cases]

    assert decoded == [llama_like.decode(ids) for ids in cases]


def test_a_run_of_good_and_bad_bytes_keeps_the_good(llama_like: Tokenizer) -> None:
    ids = [llama_like.token_to_id(token) for token in ("<0xC3>", "<0xA9>", "<0xFF>", "<0xC3>", "▁the")]

    text = detokenizer_of(llama_like).decode(ids)

    assert text == "é\ufffd\ufffd the"


@pytest.mark.parametrize("kind", ["byte_level", "llama_like"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_never_shows_half_a_character(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode(text, add_special_tokens=False).ids

    pieces = streamed(detokenizer_of(tokenizer), ids)

    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


@pytest.mark.parametrize("kind", ["byte_level", "llama_like"])
def test_a_character_comes_with_its_last_byte(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode("語", add_special_tokens=False).ids

    pieces = streamed(detokenizer_of(tokenizer), ids)

    assert pieces[-1] == ""
    assert pieces[-2] == "語"


@given(text=st.text(max_size=30))
def test_any_text_survives_bytes(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text, add_special_tokens=False).ids

    assert detokenizer_of(byte_level).decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", ["byte_level", "llama_like"])
@pytest.mark.parametrize(("prompt", "output"), [("the quick", " brown fox"), ("the", "the"), ("a 語", "語 the")])
def test_text_goes_on_where_a_prompt_ends(kind: str, prompt: str, output: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    ids = tokenizer.encode(prompt + output, add_special_tokens=False).ids[len(prompt_ids) :]

    pieces = streamed(detokenizer_of(tokenizer), ids, prompt_ids=prompt_ids)

    assert prompt + "".join(pieces) == tokenizer.decode(prompt_ids + ids)


@pytest.mark.parametrize("kind", ["byte_level", "llama_like"])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_character_begun_by_the_prompt_is_completed(kind: str, cut: int, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode("x 語", add_special_tokens=False).ids

    pieces = streamed(detokenizer_of(tokenizer), ids[-cut:], prompt_ids=ids[:-cut])

    assert "".join(pieces) == "語"


def test_a_prompt_of_special_tokens_alone_is_a_start(llama_like: Tokenizer) -> None:
    ids = llama_like.encode("the fox", add_special_tokens=False).ids

    pieces = streamed(detokenizer_of(llama_like), ids, prompt_ids=[1])

    assert "".join(pieces) == "the fox"


def test_special_and_unknown_ids_are_left_out(byte_level: Tokenizer) -> None:
    end = byte_level.token_to_id("<|im_end|>")
    detokenizer = detokenizer_of(byte_level)

    shown = detokenizer.decode([end, 10**6], skip_special_tokens=False)

    assert shown == "<|im_end|>"
    assert detokenizer.decode([end, 10**6]) == ""
    assert detokenizer.token_bytes(10**6) == b""


@pytest.mark.parametrize(
    ("kind", "token", "data"),
    [("byte_level", "Ġthe", b" the"), ("llama_like", "▁the", b" the"), ("llama_like", "<0xE6>", b"\xe6")],
)
def test_a_token_stands_for_its_bytes(kind: str, token: str, data: bytes, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)

    assert detokenizer_of(tokenizer).token_bytes(tokenizer.token_to_id(token)) == data


def test_bytes_of_a_token_that_are_no_character_are_marked_in_its_text(llama_like: Tokenizer) -> None:
    token = llama_like.token_to_id("<0xE6>")

    assert detokenizer_of(llama_like).token_text(token) == "\ufffd"


def test_a_stream_without_output_is_empty(byte_level: Tokenizer) -> None:
    assert streamed(detokenizer_of(byte_level), []) == [""]
