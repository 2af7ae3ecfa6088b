"""The model's tokenizer as grammars see it: the bytes of each token, and which tokens end an answer."""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer

from quire_contract.model_folder import ModelFolderError, read_prompt_files

Words = npt.NDArray[np.int32]
"""Bits of 32 tokens a word, the lowest token in the lowest bit."""


class NoTokenizerError(Exception):
    """This model cannot obey grammars. The message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GrammarTokenizer:
    """Made once for a model; read by all threads."""

    ll: LLTokenizer
    vocab_size: int
    """Of the model's logits; tokens that only one of the two sides knows are never allowed."""


class TokenizerLoading:
    """Reads the tokenizer in a thread, while the weights are read: a large one takes a second."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: GrammarTokenizer | NoTokenizerError | None = None
        self._thread = threading.Thread(target=self._load, name="grammar-tokenizer", daemon=True)
        self._thread.start()

    def result(self, vocab_size: int) -> GrammarTokenizer:
        """For logits of so many tokens. Raises NoTokenizerError."""
        self._thread.join()
        if isinstance(self._found, NoTokenizerError):
            raise self._found
        if (
            self._found is None or self._found.vocab_size != vocab_size
        ):  # not what config.json says, or the thread fell over
            return load_grammar_tokenizer(self._folder, vocab_size)
        return self._found

    def _load(self) -> None:
        try:
            self._found = load_grammar_tokenizer(self._folder)
        except NoTokenizerError as error:
            self._found = error


def load_grammar_tokenizer(folder: Path, vocab_size: int | None = None) -> GrammarTokenizer:
    """From the model's folder; its config.json tells the vocabulary's size if nobody does. NoTokenizerError says what is wrong with it."""
    try:
        files = read_prompt_files(folder)
    except ModelFolderError as error:
        raise NoTokenizerError(str(error)) from None
    return grammar_tokenizer(files.tokenizer_json, files.eos_token_ids, vocab_size or files.vocab_size)


def grammar_tokenizer(tokenizer_json: bytes, eos_token_ids: list[int], vocab_size: int) -> GrammarTokenizer:
    """From its parts. Holds the interpreter lock for about 5 s for each million tokens."""
    text = tokenizer_json.decode()
    try:
        ll = _with_size_of_model(text, eos_token_ids, vocab_size) or _with_what_both_have(
            text, eos_token_ids, vocab_size
        )
    except ValueError as error:
        raise NoTokenizerError(f"tokenizer.json: {error}") from None
    return GrammarTokenizer(ll=ll, vocab_size=vocab_size)


def _with_size_of_model(text: str, eos_token_ids: list[int], vocab_size: int) -> LLTokenizer | None:
    """As models have it: their tokenizer knows all ends, and not more tokens than they. None if it is otherwise."""
    if not eos_token_ids:
        return None
    try:
        return LLTokenizer(text, n_vocab=vocab_size, eos_token=eos_token_ids)
    except ValueError:
        return None


def _with_what_both_have(text: str, eos_token_ids: list[int], vocab_size: int) -> LLTokenizer:
    """The tokenizer has more tokens than the model, or lacks an end."""
    size = LLTokenizer(text).vocab_size
    ends = [token for token in eos_token_ids if 0 <= token < size]
    if not ends:
        raise NoTokenizerError("the model names no end token that its tokenizer has")
    return LLTokenizer(text, n_vocab=max(size, vocab_size), eos_token=ends)
