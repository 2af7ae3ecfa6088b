"""The model's tokenizer as grammars see it: the bytes of each token, and which tokens end an answer."""

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


def load_grammar_tokenizer(folder: Path, vocab_size: int) -> GrammarTokenizer:
    """From the model's folder. NoTokenizerError says what is wrong with it."""
    try:
        files = read_prompt_files(folder)
    except ModelFolderError as error:
        raise NoTokenizerError(str(error)) from None
    return grammar_tokenizer(files.tokenizer_json, files.eos_token_ids, vocab_size)


def grammar_tokenizer(tokenizer_json: bytes, eos_token_ids: list[int], vocab_size: int) -> GrammarTokenizer:
    """From its parts. Holds the interpreter lock for about 5 s for each million tokens."""
    try:
        own = LLTokenizer(tokenizer_json.decode())
        ends = [token for token in eos_token_ids if 0 <= token < own.vocab_size]
        if not ends:
            raise NoTokenizerError("the model names no end token that its tokenizer has")
        return GrammarTokenizer(
            ll=LLTokenizer(tokenizer_json.decode(), n_vocab=max(own.vocab_size, vocab_size), eos_token=ends),
            vocab_size=vocab_size,
        )
    except ValueError as error:
        raise NoTokenizerError(f"tokenizer.json: {error}") from None
