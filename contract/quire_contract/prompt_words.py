"""Token ids of a text by its words: a word that was seen before costs a look-up instead of the tokenizer's work.

    "<|im_start|>user\nHow are you?"  ->  <|im_start|> | "user\nHow" " are" " you?"  ->  151644 | 872 198 4438 | 525 | 498 30

A tokenizer with one of the splitters of `prompt_segments.KNOWN_SPLITS` cuts a text at its added tokens, then into words, and encodes
each word by itself. None of these splitters looks behind itself, and a word alone is one word again; so the ids of a text are those of its
words, in a row.

In none of them a word goes on past a space, unless it is white space so far. So the text between two spaces is looked up first, with
the space before it: that is quicker than to find words in it. Only what is not known, or ends in white space, is cut into words as the
splitter does it, here where it is ASCII, whose classes of characters are a few ranges; other text is the tokenizer's, from space to
space. `tests/contract/test_prompt_words.py` holds both against each other.

Bounded: a full memory is emptied. Read from several threads.
"""

import re
from collections.abc import Mapping

from tokenizers import Tokenizer

from quire_contract.block_hash import token_bytes

MAX_WORDS = 50_000
"""About 10 MB of words and their ids."""
MAX_WORD_CHARS = 64
"""A longer one is hardly a word that comes again."""
MAX_LEARNT = 32
"""New texts with other than ASCII in one text that are encoded one by one, at twice the cost of encoding them together: where there are
more, the text is the tokenizer's."""
_BYTE_LEVEL = {byte: 256 + place for place, byte in enumerate((*range(33), 127))}
"""How a byte-level alphabet spells ASCII: visible characters as they are, the others as the letters from U+0100 on."""
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
    """For one tokenizer. Token ids are packed, as `block_hash.token_bytes` packs them."""

    def __init__(self, tokenizer: Tokenizer, split: str, added: Mapping[str, int]) -> None:
        """`split`: one of KNOWN_SPLITS. `added`: the tokens that raw text is cut at first, all of them, with their ids."""
        self.split = split
        self._tokenizer = tokenizer
        self._model = tokenizer.model
        self._find = ascii_pattern(split).findall
        contents = sorted(added, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, contents)) + ")").split if contents else None
        self.added = {content: token_bytes((token_id,)) for content, token_id in added.items()}
        """Read it, never change it."""
        self._words: dict[str, bytes] = {}
        """By the text itself: words, and other text from a space or a beginning to a space or an end."""
        self._spaced: dict[str, bytes] = {}
        """By text without spaces that does not end in white space: the ids of a space and this."""

    def encode(self, text: str) -> bytes | None:
        """Its token ids, without special tokens around it. None: the tokenizer must do it."""
        parts = [text] if self._cut is None else self._cut(text)
        if len(parts) == 1:
            return self._encode_plain(text)
        encoded: list[bytes] = []
        for index, part in enumerate(parts):
            if not part:
                continue
            ids = (self.added if index % 2 else self._words).get(part) or self._encode_plain(part)
            if ids is None:
                return None
            encoded.append(ids)
        return b"".join(encoded)

    def _encode_plain(self, text: str) -> bytes | None:
        """Of text without added tokens."""
        parts = text.split(" ")
        found: list[bytes | None] = list(map(self._spaced.get, parts))
        first = parts[0]
        if not first:
            found[0] = b""
        else:
            found[0] = None if first[-1].isspace() and len(parts) > 1 else self._words.get(first)
        try:
            return b"".join(found)  # type: ignore[arg-type]
        except TypeError:  # not all are known
            return self._encode_rest(parts, found)

    def _encode_rest(self, parts: list[str], found: list[bytes | None]) -> bytes | None:
        """Of text that is cut at its spaces, with the ids of the parts that are known."""
        unknown: dict[int, str] = {}
        end = -1
        for index, known in enumerate(found):
            if index <= end:
                found[index] = b""
            elif known is None:
                text, end = _whole_text(parts, index)
                ids = self._words.get(text)
                if ids is None and text.isascii():
                    ids = self._of_words(text)
                if ids is None:
                    unknown[index] = text
                found[index] = ids
        if unknown:
            learnt = self._learn(list(unknown.values()))
            if learnt is None:
                return None
            for index, ids in zip(unknown, learnt, strict=True):
                found[index] = ids
        return b"".join(found)  # type: ignore[arg-type]

    def _of_words(self, text: str) -> bytes:
        """The ids of ASCII text; kept, so that it is found at once the next time."""
        words = self._find(text)
        try:
            ids = b"".join(map(self._words.__getitem__, words))
        except KeyError:
            ids = b"".join(map(self._of_word, words))
        self._keep(text, ids)
        return ids

    def _of_word(self, word: str) -> bytes:
        known = self._words.get(word)
        if known is not None:
            return known
        ids = self.word_ids(word)
        self._keep(word, ids)
        return ids

    def word_ids(self, word: str) -> bytes:
        """Of one word of ASCII, asked of the tokenizer."""
        if len(word) > MAX_WORD_CHARS:  # takes time, in which other threads may run
            return self.texts_ids([word])[0]
        # The tokenizer's model alone makes a twentieth of the tokenizer's work.
        return token_bytes([token.id for token in self._model.tokenize(word.translate(_BYTE_LEVEL))])

    def _learn(self, texts: list[str]) -> list[bytes] | None:
        """The ids of each of `texts`, which are not ASCII. None: more of them are new than are learnt at once."""
        learnt = list(dict.fromkeys(texts))[:MAX_LEARNT]
        found = dict(zip(learnt, self.texts_ids(learnt), strict=True))
        for text, ids in found.items():
            self._keep(text, ids)
        return None if any(text not in found for text in texts) else [found[text] for text in texts]

    def texts_ids(self, texts: list[str]) -> list[bytes]:
        """Of each text, asked of the tokenizer."""
        return [token_bytes(e.ids) for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _keep(self, text: str, ids: bytes) -> None:
        if len(text) > MAX_WORD_CHARS:
            return
        if len(self._words) >= MAX_WORDS:
            self._words = {}
        self._words[text] = ids
        if text[0] == " " and text.rfind(" ") == 0 and not text[-1].isspace():
            if len(self._spaced) >= MAX_WORDS:
                self._spaced = {}
            self._spaced[text[1:]] = ids


def _whole_text(parts: list[str], index: int) -> tuple[str, int]:
    """The text from parts[index], with the space before it, up to the next space that nothing goes on past; and that part's index."""
    end = index
    while end + 1 < len(parts) and (not parts[end] or parts[end][-1].isspace()):
        end += 1
    text = " ".join(parts[index : end + 1])
    return (" " + text if index else text), end


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
