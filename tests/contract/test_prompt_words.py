"""Words looked up one by one give the ids that the tokenizer gives the whole text."""

import itertools
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from quire_contract.block_hash import token_bytes
from quire_contract.prompt_segments import KNOWN_SPLITS, SegmentedEncoder
from quire_contract.prompt_words import MAX_LEARNT, MAX_WORDS, WordEncoder

CORPUS = ["The quick brown fox jumps; it's 12345 times, isn't it?\n\n\tdef area(r): return 3.14 * r ** 2\r\n"] * 4
ADDED = ("<|im_start|>", "<|im_end|>", "<|im_end|>\n<|long|>", "user ")
FRAGMENTS = [
    *ADDED, "<|im_", "end|>", " ", "  ", "\n", " \n ", "\r\n", "\r", "\t", "\v", "\f", "\x1c", "\x1f", "\x85", "\x00", "the", " The",
    "quick", "'s", "'LL", "it's", "'t'", "''", ",", "?!", "12", " 345678", "/", "_", "camelCase", "HTTPServer", "x" * 70, "é", "user",
    " user ", "日本 語", " ü", "\u00a0", "\u2003 ", "\u0301",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.sampled_from(string.printable), max_size=6), max_size=30).map(
    "".join
)


def tokenizer_of(split):
    tokenizer = Tokenizer(models.BPE())
    cutter = pre_tokenizers.Split(Regex(split), "isolated")
    inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cutter, inner])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=list(ADDED), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


TOKENIZERS = {split: tokenizer_of(split) for split in sorted(KNOWN_SPLITS)}
ENCODERS = {
    split: WordEncoder(tokenizer, split, {content: tokenizer.token_to_id(content) for content in ADDED})
    for split, tokenizer in TOKENIZERS.items()
}


@pytest.mark.parametrize("split", TOKENIZERS, ids=range(len(TOKENIZERS)))
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_words_have_the_ids_that_the_text_gets_as_a_whole(split, text):
    expected = token_bytes(TOKENIZERS[split].encode(text, add_special_tokens=False).ids)

    first, again = ENCODERS[split].encode(text), ENCODERS[split].encode(text)

    assert first in (expected, None)
    assert again == expected


@pytest.mark.parametrize("split", TOKENIZERS, ids=range(len(TOKENIZERS)))
def test_every_pair_of_ascii_characters_is_cut_as_the_tokenizer_cuts_it(split):
    cut = TOKENIZERS[split].pre_tokenizer
    encoder = WordEncoder(TOKENIZERS[split], split, {})

    for first in map(chr, range(128)):
        for second in map(chr, range(128)):
            text = f"{first}{second}a {second}{first} 1"
            assert encoder._find(text) == [text[slice(*span)] for _, span in cut.pre_tokenize_str(text)]


def test_a_text_of_many_new_words_of_another_alphabet_is_the_tokenizers_until_they_were_seen():
    split = min(KNOWN_SPLITS)
    encoder = WordEncoder(TOKENIZERS[split], split, {})
    words = [a + b for a in "абвгдежзий" for b in "абвгдежзий"][: 2 * MAX_LEARNT]
    text = " ".join(words)

    answers = [encoder.encode(text) for _ in range(3)]

    expected = token_bytes(TOKENIZERS[split].encode(text, add_special_tokens=False).ids)
    assert answers == [None, expected, expected]


@pytest.mark.parametrize("split", TOKENIZERS, ids=range(len(TOKENIZERS)))
def test_new_words_have_the_ids_that_the_tokenizer_gives_them(split):
    encoder = WordEncoder(TOKENIZERS[split], split, {})
    texts = [
        *map(chr, range(128)),
        *("".join(pair) for pair in itertools.product("aB1 '\n\x00\x7f_", repeat=4)),
        "x" * 500,
    ]

    ids = [encoder.encode(text) for text in texts]

    encodings = TOKENIZERS[split].encode_batch(texts, add_special_tokens=False)
    assert ids == [token_bytes(encoding.ids) for encoding in encodings]


@pytest.mark.parametrize("split", TOKENIZERS, ids=range(len(TOKENIZERS)))
def test_whatever_stands_beside_a_space_the_text_before_it_has_ids_of_its_own(split):
    encoder, characters = WordEncoder(TOKENIZERS[split], split, {}), "aA1,'/_ \t\n\r\x1c\u00e9\u00a0\u8a9e"
    texts = [f"x{before}{space}{after}y" for before in characters for space in (" ", "  ") for after in characters]

    ids = [encoder.encode(text) for text in texts for _ in range(2)]

    expected = [TOKENIZERS[split].encode(text, add_special_tokens=False).ids for text in texts for _ in range(2)]
    assert ids == list(map(token_bytes, expected))


def test_what_is_remembered_is_bounded():
    split = min(KNOWN_SPLITS)
    encoder = WordEncoder(TOKENIZERS[split], split, {})
    for memory in (encoder._words, encoder._spaced):
        memory.update((f"old{number}", b"") for number in range(MAX_WORDS))

    ids = encoder.encode("one more")

    assert ids == token_bytes(TOKENIZERS[split].encode("one more", add_special_tokens=False).ids)
    assert (len(encoder._words), len(encoder._spaced)) == (2, 1)


@pytest.mark.parametrize("change", ["dropout", "normalized"])
def test_a_tokenizer_whose_words_depend_on_more_than_themselves_encodes_whole_texts(change):
    split = min(KNOWN_SPLITS)
    tokenizer = tokenizer_of(split)
    if change == "dropout":
        tokenizer.model.dropout = 0.5
    else:
        tokenizer.add_tokens(["quick brown"])

    encoder = SegmentedEncoder(tokenizer, tokenizer.to_str().encode())

    assert encoder._words is None
