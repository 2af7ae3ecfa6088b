"""The C++ finds the words and the ids that its twin in Python finds, with every splitter that is known and whatever the text is."""

import itertools
import random
import string
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from quire_contract import prompt_segments, prompt_words
from quire_contract.block_hash import token_bytes
from quire_contract.prompt_segments import KNOWN_SPLITS, SegmentedEncoder
from quire_contract.prompt_words import MAX_LEARNT, MAX_WORDS, ascii_pattern
from quire_router import prompt_job
from quire_router.native.library import native

CORPUS = ["The quick brown fox jumps; it's 12345 times, isn't it?\n\n\tdef area(r): return 3.14 * r ** 2\r\n"] * 4
ADDED = ("<|im_start|>", "<|im_end|>", "<|im_end|>>", "[INST]", "été")
FRAGMENTS = [
    *ADDED, "<|im_", "end|>", " ", "  ", "\n", " \n ", "\r\n", "\r", "\t", "\v", "\f", "\x1c", "\x1d ", "\x1f", "\x85", "\x00", "\x7f",
    "the", " The", "quick", "'s", "'LL", "'Ve", "it's", "DON'T", "'t'", "''", "\u2019s", ",", "?!", "12", " 345678", "/", "\n/", "_",
    "camelCase", "HTTPServer", "x" * 70, "é", "user", "日本 語", " ü", "\u00a0", "\u2003 ", "\u3000", "\u0301", "\u017f", "½",
    "٣", "😀 👍🏽", "word " * 110,    "line\nand\nline\n" * 45, "a\nb\n" * 500 + " ", "\nétat\n" * 90,
]  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(FRAGMENTS) | st.text(st.sampled_from(string.printable), max_size=6) | st.text(max_size=4),
    max_size=30,
).map("".join)
LETTERS = str.maketrans("0123456789", "abcdefghij")
SPLITS = sorted(KNOWN_SPLITS)
NAMES = [KNOWN_SPLITS[split] for split in SPLITS]


def tokenizer_of(split):
    tokenizer = Tokenizer(models.BPE())
    cutter = pre_tokenizers.Split(Regex(split), "isolated")
    inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cutter, inner])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(content, normalized=False) for content in ADDED]
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


class NotedWords:
    """Gives each word that it is asked for the next id."""

    def __init__(self, split, added=()):
        self.split, self.words = split, []
        self.added = {content: token_bytes([2**31 + number]) for number, content in enumerate(added)}

    def word_ids(self, word):
        self.words.append(word)
        return token_bytes([len(self.words) - 1])

    def texts_ids(self, texts):
        return [self.word_ids(text) for text in texts]

    def of(self, packed):
        ids = memoryview(packed).cast("I")
        return [list(self.added)[number - 2**31] if number >= 2**31 else self.words[number] for number in ids]


def native_of(words, encoder=None):
    return native().PromptEncoder(
        digest="d", block_size=16, max_chars=-1, too_long=print, encoder=encoder, words=words, split=KNOWN_SPLITS[words.split],
        frame=None,
    )  # fmt: skip


TOKENIZERS = {split: tokenizer_of(split) for split in SPLITS}
TWINS = {split: SegmentedEncoder(found, found.to_str().encode()) for split, found in TOKENIZERS.items()}
ENCODERS = {split: native_of(twin.words, twin) for split, twin in TWINS.items()}


@pytest.mark.parametrize("split", SPLITS, ids=NAMES)
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_texts_have_the_ids_and_the_segments_that_they_have_in_python(split, text):
    whole = token_bytes(TOKENIZERS[split].encode(text, add_special_tokens=False).ids)

    first, again = ENCODERS[split].encode_words(text), ENCODERS[split].encode_words(text)

    assert first in (whole, None)
    assert again == whole
    assert ENCODERS[split].segments(text) == list(TWINS[split].segments(text))


@pytest.mark.parametrize("split", SPLITS, ids=NAMES)
def test_ascii_is_cut_into_the_words_that_the_pattern_finds(split):
    find, noted, rng = ascii_pattern(split).findall, NotedWords(split), random.Random(split)
    encoder = native_of(noted)
    pairs = [f"{a}{b}a {b}{a} 1" for a, b in itertools.product(map(chr, range(128)), repeat=2)]
    dense = ["".join(few) for few in itertools.product("aB1' \n\r\x1c/,", repeat=4)]
    long = ["".join(rng.choices(" \n\r\t\v\f\x1c'/,.aAzZlLvVeErRsStTdDmM09_\x00\x7f", k=60)) for _ in range(2000)]

    differing = [text for text in (*pairs, *dense, *long) if noted.of(encoder.encode_words(text)) != find(text)]

    assert differing == []


def test_added_tokens_are_cut_first_the_longest_of_those_that_begin_leftmost():
    added = ["ab", "abcd", "abce", "b", "<x>", "<x><y>", "c" * 300]
    noted = NotedWords(min(KNOWN_SPLITS), added)
    encoder = native_of(noted)

    words = [
        noted.of(encoder.encode_words(text)) for text in ("abcabcd", "<x><y<x><y>", "ab<x", "bb!", "c" * 299 + "b")
    ]

    assert words == [
        ["ab", "c", "abcd"],
        ["<x>", "<", "y", "<x><y>"],
        ["ab", "<", "x"],
        ["b", "b", "!"],
        ["c" * 299, "b"],
    ]


def test_a_text_of_many_new_words_of_another_alphabet_is_the_tokenizers_until_they_were_seen():
    split = min(KNOWN_SPLITS)
    encoder = native_of(TWINS[split].words)
    text = " ".join([a + b for a in "абвгдежзий" for b in "абвгдежзий"][: 2 * MAX_LEARNT])

    answers = [encoder.encode_words(text) for _ in range(3)]

    expected = token_bytes(TOKENIZERS[split].encode(text, add_special_tokens=False).ids)
    assert answers == [None, expected, expected]


def test_what_is_remembered_is_bounded_and_no_long_text_is_remembered():
    noted = NotedWords(min(KNOWN_SPLITS))
    encoder = native_of(noted)
    sizes = []
    for number in range(0, 2 * MAX_WORDS, 500):
        encoder.encode_words(" ".join(str(n).translate(LETTERS) for n in range(number, number + 500)))
        sizes.append(encoder.num_words)
    encoder.encode_words("x" * 65 + "é" * 65)

    assert max(sizes) <= MAX_WORDS
    assert min(sizes[20:]) < max(sizes) // 10
    assert noted.of(encoder.encode_words("x" * 65 + "é" * 65)) == ["x" * 65 + "é" * 65]
    assert noted.words.count("x" * 65 + "é" * 65) == 2


def test_several_threads_may_use_it_at_once():
    split = min(KNOWN_SPLITS)
    encoder, found = native_of(TWINS[split].words), []
    texts = [f"so many words {number} as été {number % 7}é there are{number}" for number in range(400)]

    threads = [
        threading.Thread(target=lambda: found.append([encoder.encode_words(text) for text in texts])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    encodings = TOKENIZERS[split].encode_batch(texts, add_special_tokens=False)
    assert found == [[token_bytes(encoding.ids) for encoding in encodings]] * 4


class Wrong(NotedWords):
    """Answers as it must not, or fails."""

    def __init__(self, answer):
        super().__init__(min(KNOWN_SPLITS))
        self.answer = answer

    def word_ids(self, word):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    texts_ids = word_ids


@pytest.mark.parametrize("answer", [None, b"abc", [b""], [], LookupError("x")], ids=str)
def test_a_tokenizer_that_fails_or_answers_wrongly_is_an_error_and_nothing_is_remembered(answer):
    encoder = native_of(Wrong(answer))

    for text in ("word and word", "été été", "word " * 40 + "été"):
        with pytest.raises((TypeError, LookupError)):
            encoder.encode_words(text)

    assert encoder.num_words == 0


def test_half_a_surrogate_pair_is_an_error():
    with pytest.raises(UnicodeEncodeError):
        ENCODERS[min(KNOWN_SPLITS)].encode_words("a \ud800 b")


def test_a_splitter_that_it_does_not_know_is_refused():
    words = NotedWords(min(KNOWN_SPLITS))

    with pytest.raises(ValueError, match="split: 'another' is not known"):
        native().PromptEncoder(
            digest="d",
            block_size=16,
            max_chars=-1,
            too_long=print,
            encoder=None,
            words=words,
            split="another",
            frame=None,
        )


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (prompt_segments, ["MIN_CHARS", "SEGMENT_CHARS", "MAX_KEPT_CHARS"]),
        (prompt_words, ["MAX_WORDS", "MAX_WORD_CHARS", "MAX_LEARNT"]),
        (prompt_job, ["MAX_NEW_CHARS"]),
    ],
    ids=["segments", "words", "jobs"],
)
def test_bounds_are_those_of_python(module, names):
    assert [getattr(native(), name) for name in names] == [getattr(module, name) for name in names]
