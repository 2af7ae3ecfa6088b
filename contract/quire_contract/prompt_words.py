"""Token ids of a text by its words: a word that was seen before costs a look-up instead of the tokenizer's work.

    "<|im_start|>user\nHow are you?"  ->  <|im_start|> | "user" "\n" "How" " are" " you" "?"  ->  151644 | 872 198 4438 ...

A tokenizer with one of the splitters of `prompt_segments.KNOWN_SPLITS` cuts a text at its added tokens, then into words, and encodes
each word by itself. None of these splitters looks behind itself, and a word alone is one word again; so the ids of a text are those of its
words, in a row. Words are found here only in ASCII text, where the splitter's classes of characters are a few ranges: other text is the
tokenizer's. `tests/contract/test_prompt_words.py` holds both against each other.

Bounded: a full memory is emptied. Read from several threads.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain

from tokenizers import Tokenizer

MAX_WORDS = 50_000
"""About 10 MB of words and their ids."""
MAX_WORD_CHARS = 64
"""A longer one is hardly a word that comes again."""
MAX_LEARNT = 32
"""New words of one text that are encoded one by one, at twice the cost of encoding them together: where there are more, the text is the
tokenizer's."""
_IN_CLASS = {
    r"\p{L}": "A-Za-z",
    r"\p{N}": "0-9",
    r"\s": r"\t-\r ",
    r"\p{Lu}": "A-Z",
    r"\p{Ll}": "a-z",
    r"\p{Lt}": "",
    r"\p{Lm}": "",
    r"\p{Lo}": "",
    r"\p{M}": "",
}
"""What a class of characters holds of ASCII."""
_NAMED = re.compile(r"\\p\{\w+\}|\\[sS]|\\.|\[\^?|\]|.", re.DOTALL)


class WordEncoder:
    """For one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, split: str, added: Mapping[str, int]) -> None:
        """`split`: one of KNOWN_SPLITS. `added`: the tokens that raw text is cut at first, all of them, with their ids."""
        self._tokenizer = tokenizer
        self._find = ascii_pattern(split).findall
        contents = sorted(added, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, contents)) + ")").split if contents else None
        self._added: dict[str, Sequence[int]] = {content: (token_id,) for content, token_id in added.items()}
        self._known = dict(self._added)

    def encode(self, text: str) -> list[int] | None:
        """Its token ids, without special tokens around it. None: the tokenizer must do it."""
        if not text.isascii():
            return None
        words = self._words(text)
        try:
            return list(chain.from_iterable(map(self._known.__getitem__, words)))
        except KeyError:
            ids = self._learn(words)
        return None if ids is None else list(chain.from_iterable(ids))

    def _words(self, text: str) -> list[str]:
        """Words and added tokens, in order. No word is spelt as an added token is, or the text would have been cut there."""
        if self._cut is None:
            return self._find(text)
        pieces = self._cut(text)
        if len(pieces) == 1:
            return self._find(text)
        words: list[str] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                words.append(piece)
            elif piece:
                words += self._find(piece)
        return words

    def _learn(self, words: list[str]) -> list[Sequence[int]] | None:
        """The ids of each of `words`. None: more of them are new than are learnt at once."""
        known = self._known
        missing = [word for word in dict.fromkeys(words) if word not in known]
        learnt = missing[:MAX_LEARNT]
        encodings = self._tokenizer.encode_batch_fast(learnt, add_special_tokens=False)
        found: dict[str, Sequence[int]] = {word: e.ids for word, e in zip(learnt, encodings, strict=True)}
        if len(known) + len(learnt) > MAX_WORDS:
            self._known = dict(self._added)
        self._known.update((word, ids) for word, ids in found.items() if len(word) <= MAX_WORD_CHARS)
        if len(missing) > len(learnt):
            return None
        return [found[word] if word in found else known[word] for word in words]


def ascii_pattern(split: str) -> re.Pattern[str]:
    """What finds in ASCII text the words that `split`, in the syntax of Oniguruma, finds there."""
    parts: list[str] = []
    in_class = False
    for written in _NAMED.findall(split):
        if written.startswith("["):
            in_class = True
        elif written == "]":
            in_class = False
        meant = _IN_CLASS.get(written)
        if meant is None:
            parts.append(r"[^\t-\r ]" if written == r"\S" else written)
        else:
            parts.append(meant if in_class else f"[{meant}]")
    return re.compile("".join(parts))
