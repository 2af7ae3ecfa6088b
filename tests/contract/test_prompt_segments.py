"""The segments of a text have the ids of the whole, with every kind of tokenizer and whatever stands in the text."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from quire_contract.block_hash import token_bytes
from quire_contract.prompt_segments import (
    _GPT2,
    _LLAMA3,
    _O200K,
    _PLAIN,
    _QWEN2,
    _TEKKEN,
    MIN_CHARS,
    SEGMENT_CHARS,
    SegmentedEncoder,
)

CORPUS = [
    "the quick brown fox jumps over the lazy dog. 12 + 30 = 42\n\n  next line, it's what we'll do\n",
    "héllo wörld, ünïcode; 日本語のテスト and emoji 😀👍🏽 too\r\n\tdef area(r):\n    return 3.14159 * r ** 2\n",
    "http://a.b/c/d\n/usr/lib;\n/x ½ ² camelCase HTTPServer Don't\n",
] * 5
SPLITS = {"gpt2": _GPT2, "llama3": _LLAMA3, "qwen2": _QWEN2, "plain": _PLAIN, "o200k": _O200K, "tekken": _TEKKEN}
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|im_end|>\n<|long|>", "<|x|>"]
FRAGMENTS = [
    *SPECIALS, "<|im_", "end|>", "|>", " ", "  ", "\n", "\n\n", " \n ", "\r\n", "/", "the", " the", "quick", "'s", "'LL", "it's", ",",
    ".", "12", " 345678", "½", "²", "日本", "語", "é", "e\u0301", "\u0301", "A\u030a", "😀", "👍🏽", "\t", "<mask>", "<w>", "big one", "_",
    "a b", "-", "HTTPServer", "x" * 300, "word and words " * 25, "line\nand\nline\n" * 20,
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), max_size=40).map("".join)


def byte_level(split, normalizer=None, added=()):
    tokenizer = Tokenizer(models.BPE())
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        cutter = pre_tokenizers.Split(Regex(split), "isolated")
        inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cutter, inner])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(list(added))
    return tokenizer


def metaspace(scheme):
    vocab = {"<unk>": 0, **{char: i for i, char in enumerate("▁thequickbrownfx.,12345678/-_", 1)}}
    vocab |= {text: len(vocab) + i for i, text in enumerate(["th", "the", "▁the", "▁▁"])}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True))
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


FUSSY = (
    AddedToken("<mask>", lstrip=True, normalized=False),
    AddedToken("<w>", single_word=True, normalized=False),
    AddedToken("word", normalized=False),
    AddedToken("big one", normalized=True),
)
TOKENIZERS = {
    **{name: byte_level(split) for name, split in SPLITS.items()},
    "byte level alone": byte_level(None),
    "nfc": byte_level(_QWEN2, normalizers.NFC()),
    "lowercase": byte_level(_QWEN2, normalizers.Lowercase()),
    "fussy added tokens": byte_level(_LLAMA3, added=FUSSY),
    "added tokens that take spaces": byte_level(_LLAMA3, added=(*FUSSY[:1], AddedToken("<x>", rstrip=True))),
    **{f"metaspace {scheme}": metaspace(scheme) for scheme in ("first", "always", "never", "normalizer")},
}
CUT_INSIDE = {*SPLITS, "byte level alone", "nfc"}


def encoder_of(tokenizer):
    return SegmentedEncoder(tokenizer, tokenizer.to_str().encode())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_segments_have_the_ids_of_the_whole(name):
    tokenizer = TOKENIZERS[name]
    encoder = encoder_of(tokenizer)

    @settings(max_examples=60, deadline=None)
    @given(TEXTS)
    def check(text):
        segments = list(encoder.segments(text))
        ids = b"".join(map(encoder.encode, segments))

        assert "".join(segments) == text
        assert ids == token_bytes(tokenizer.encode(text, add_special_tokens=False).ids)

    check()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_long_text_is_cut_inside_only_with_a_splitter_that_is_known(name):
    segments = list(encoder_of(TOKENIZERS[name]).segments("the quick brown fox " * 200))

    assert (len(segments) > 5) == (name in CUT_INSIDE)


def test_text_is_cut_before_special_tokens_and_a_common_beginning_has_common_segments():
    encoder, rng = encoder_of(TOKENIZERS["llama3"]), random.Random(1)
    shared = "<|im_start|>system\n" + " ".join(rng.choice(["alpha", "beta", "gamma"]) for _ in range(200))

    one, two = (list(encoder.segments(f"{shared}<|im_end|><|im_start|>user\n{tail}")) for tail in ("one", "another"))

    assert one[:-1] == two[:-1]
    assert one[-1] == "<|im_end|><|im_start|>user\none"
    assert all(len(segment) < SEGMENT_CHARS + 16 for segment in one)


def test_the_longest_added_token_at_a_place_is_the_one_that_counts():
    a, b = "a" * MIN_CHARS, "b" * MIN_CHARS

    segments = encoder_of(TOKENIZERS["llama3"]).segments(f"{a}<|im_end|>\n<|long|>{b}<|im_end|>\n<|im_end|>")

    assert list(segments) == [a, f"<|im_end|>\n<|long|>{b}", "<|im_end|>\n<|im_end|>"]


@pytest.mark.parametrize(
    ("text", "is_firm"),
    [
        ("<|im_end|>\n<|im_start|>user\n", True),
        ("<|im_end|>", False),  # <|im_end|>\n<|long|> may be meant
        ("<|im_end|>\n", False),
        ("<|x|>", True),
        ("\n<|x|>", False),
        ("user\n", False),
        ("", False),
    ],
)
def test_a_text_that_begins_with_a_token_is_cut_off_whatever_follows(text, is_firm):
    encoder = encoder_of(TOKENIZERS["llama3"])

    answers = [encoder.is_firm(text) for _ in range(2)]

    assert answers == [is_firm] * 2
    assert not encoder_of(TOKENIZERS["fussy added tokens"]).is_firm("<mask>x")


def test_what_templates_write_again_and_again_is_tokenised_once():
    encoder = encoder_of(TOKENIZERS["llama3"])

    first, again, longer = (encoder.encode(text) for text in ("<|im_end|>\n", "<|im_end|>\n", "x" * 100))

    assert first is again
    assert first == token_bytes(TOKENIZERS["llama3"].encode("<|im_end|>\n").ids)
    assert encoder.encode("x" * 100) is not longer


@pytest.mark.parametrize(
    ("processor", "frame"),
    [
        (None, ([], [])),
        (processors.TemplateProcessing(single="<|x|> $A", special_tokens=[("<|x|>", 3)]), ([3], [])),
        (processors.TemplateProcessing(single="<|x|> $A <|x|>", special_tokens=[("<|x|>", 3)]), ([3], [3])),
        (processors.TemplateProcessing(single="$A <|x|> $A", special_tokens=[("<|x|>", 3)]), None),
        (processors.ByteLevel(trim_offsets=False), ([], [])),
    ],
)
def test_special_tokens_around_a_text_are_known_where_they_are_always_the_same(processor, frame):
    tokenizer = byte_level(_LLAMA3)
    if processor is not None:
        tokenizer.post_processor = processor

    found = encoder_of(tokenizer).frame

    assert found == frame
    assert json.loads(tokenizer.to_str())["added_tokens"][3]["id"] == 3
