"""Cuts a prompt's text where tokenisation cannot reach across, so that what prompts have in common is tokenised once.

    <|im_start|>system\n You are ... | words go on ... | <|im_end|>\n | <|im_start|>user\n ...

The ids of the segments, one after another, are those of the whole text:

- Before a token that was added to the vocabulary. `tokenizers` cuts raw text at these first, and normalises, splits and merges each part by
  itself. Only tokens that take part as they are written: not normalised, no word boundaries, no space around them. A segment begins with
  its token, so that what is said of a text's beginning (a space before the first word) is not said of its own.
  What is shorter than MIN_CHARS goes with what follows.
- Inside long text after every SEGMENT_CHARS, at the next place where a splitter that is known ends a match whatever follows: between a
  letter and a space before a letter, and with most of them between a line break and a letter. Only with a splitter of KNOWN_SPLITS in
  front of a byte-level alphabet, and with no normaliser that could see the cut.

Any other tokenizer's texts are one segment. Knows no blocks and no cache.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from tokenizers import Tokenizer

from quire_contract.block_hash import token_bytes
from quire_contract.prompt_words import WordEncoder

SEGMENT_CHARS = 512
MIN_CHARS = 48
MAX_KEPT_CHARS = 64
"""Texts up to this length are often the same: what a template writes between messages. Their ids are kept."""
MAX_KEPT = 4096
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_PLAIN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = rf"{_WORDS[0]}{_ENDING}|{_WORDS[1]}{_ENDING}|\p{{N}}{{1,3}}{_REST}"
_TEKKEN = rf"{_WORDS[0]}|{_WORDS[1]}|\p{{N}}{_REST}"
KNOWN_SPLITS: Mapping[str, str] = {
    _GPT2: "gpt2",
    _LLAMA3: "llama3",
    _QWEN2: "qwen2",
    _PLAIN: "plain",
    _O200K: "o200k",
    _TEKKEN: "tekken",
}
"""And their names: of GPT-2, Llama 3 (and cl100k), Qwen 2 and 3, the demo model, GPT-4o, and Mistral's Tekken. None looks behind itself."""

_BETWEEN_WORDS = r"(?<=[A-Za-z])(?= [A-Za-z])"
_AFTER_LINE = r"|(?<=[\r\n])(?=[^\W\d_])"


class _Added(msgspec.Struct, frozen=True):
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


class _Model(msgspec.Struct, frozen=True):
    dropout: float | None = None


class _TokenizerParts(msgspec.Struct, frozen=True):
    """What of a tokenizer.json decides where its texts may be cut."""

    added_tokens: list[_Added] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    model: _Model = _Model()


class SegmentedEncoder:
    """Cuts and encodes for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, tokenizer_json: bytes) -> None:
        """`tokenizer_json` is what the tokenizer was made of."""
        parts = msgspec.json.decode(tokenizer_json, type=_TokenizerParts)
        self._tokenizer = tokenizer
        self._added, self._cuts_before = _added_tokens(parts.added_tokens)
        self._contents = [token.content for token in parts.added_tokens]
        self._inside = _inside(parts)
        self._frame = _frame(tokenizer, parts.post_processor)
        self._kept: dict[str, bytes] = {}
        self._firm: dict[str, bool] = {}
        self._words = _word_encoder(tokenizer, parts) if self._inside is not None else None

    @property
    def frame(self) -> tuple[list[int], list[int]] | None:
        """Special tokens that are added before and after a text where they are asked for. None: not the same around every text."""
        return self._frame

    @property
    def words(self) -> WordEncoder | None:
        """What encodes words one by one, for tokenizers with which that may be done."""
        return self._words

    def segments(self, text: str) -> Iterator[str]:
        """The text's parts in order, none of them empty, each made when it is asked for. Texts that begin alike share the first ones."""
        start = 0
        if self._added is not None:
            for found in self._added.finditer(text):
                at = found.start()
                if at - start >= MIN_CHARS and found.group() in self._cuts_before:
                    yield from _pieces(text, start, at, self._inside)
                    start = at
        yield from _pieces(text, start, len(text), self._inside)

    def is_firm(self, text: str) -> bool:
        """Whether it begins with a token that texts are cut before, whatever stands before and after it: such a cut says nothing of
        what follows."""
        firm = self._firm.get(text)
        if firm is None:
            if len(self._firm) >= MAX_KEPT:
                self._firm.clear()
            firm = self._firm[text] = self._is_cut_before(text)
        return firm

    def _is_cut_before(self, text: str) -> bool:
        found = None if self._added is None else self._added.match(text)
        if found is None or found.group() not in self._cuts_before:
            return False
        return not any(text in content and text != content for content in self._contents)

    def encode(self, text: str) -> bytes:
        """Token ids of one segment, or of any text, without special tokens around it, as `token_bytes` packs them."""
        known = self._kept.get(text)
        if known is not None:
            return known
        ids = None if self._words is None else self._words.encode(text)
        if ids is None:
            ids = self.encode_whole(text)
        if len(text) <= MAX_KEPT_CHARS:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[text] = ids
        return ids

    def encode_whole(self, text: str) -> bytes:
        """As `encode`, all of it by the tokenizer."""
        return token_bytes(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def _pieces(text: str, start: int, end: int, inside: re.Pattern[str] | None) -> Iterator[str]:
    """text[start:end] in one, or cut further. Nothing before `start` and after `end` is looked at for that."""
    at = start
    while end - start > SEGMENT_CHARS and inside is not None:
        if 0 <= at < start + SEGMENT_CHARS:  # a far one is not looked for again and again
            at = text.find(" ", start + SEGMENT_CHARS, end)  # most often this is a place, found quicker
        found = None if at < 0 else inside.match(text, at, end)
        if found is None:
            found = inside.search(text, start + SEGMENT_CHARS, end)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    if start < end:
        yield text[start:end]


def _added_tokens(added: Sequence[_Added]) -> tuple[re.Pattern[str] | None, frozenset[str]]:
    """What finds the tokens that raw text is cut at, leftmost and longest as `tokenizers` does, and those of them to cut before."""
    raw = [token for token in added if not token.normalized and token.content]
    if not raw:
        return None, frozenset()
    contents = sorted({token.content for token in raw}, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(content) for content in contents))
    fussy = {token.content for token in raw if token.single_word or token.lstrip or token.rstrip}
    return pattern, frozenset(c for c in contents if c not in fussy and c == c.strip())


def _inside(parts: _TokenizerParts) -> re.Pattern[str] | None:
    """Where text may be cut without a token there. None: nowhere."""
    if parts.normalizer is not None and parts.normalizer.get("type") != "NFC":
        return None
    if any(_sees_spaces(token) for token in parts.added_tokens if token.normalized):
        return None
    split = _split_of(parts.pre_tokenizer)
    if split not in KNOWN_SPLITS:
        return None
    return re.compile(_BETWEEN_WORDS if split == _GPT2 else _BETWEEN_WORDS + _AFTER_LINE)


def _word_encoder(tokenizer: Tokenizer, parts: _TokenizerParts) -> WordEncoder | None:
    """What encodes words one by one, for a tokenizer whose texts may be cut inside. None: its added tokens, or chance, have a say in it."""
    split = _split_of(parts.pre_tokenizer)
    if split is None or parts.model.dropout:
        return None
    if any(token.normalized or _sees_spaces(token) for token in parts.added_tokens):
        return None
    ids = {token.content: tokenizer.token_to_id(token.content) for token in parts.added_tokens if token.content}
    known = {content: token_id for content, token_id in ids.items() if token_id is not None}
    return WordEncoder(tokenizer, split, known) if len(known) == len(ids) else None


def _sees_spaces(token: _Added) -> bool:
    return token.single_word or token.lstrip or token.rstrip or any(char.isspace() for char in token.content)


def _split_of(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """The pattern that cuts text into words before a byte-level alphabet, if that is all that is done."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return _GPT2
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
    return None


def _frame(tokenizer: Tokenizer, processor: Mapping[str, Any] | None) -> tuple[list[int], list[int]] | None:
    if not _only_frames(processor):
        return None
    inner = tokenizer.encode_batch_fast(["a"], add_special_tokens=False)[0].ids
    whole = tokenizer.encode_batch_fast(["a"], add_special_tokens=True)[0].ids
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    return None


def _only_frames(processor: Mapping[str, Any] | None) -> bool:
    """Whether what is done after the model only puts tokens before and after a single text."""
    if processor is None:
        return True
    match processor.get("type"):
        case "Sequence":
            return all(_only_frames(step) for step in processor.get("processors", ()))
        case "TemplateProcessing":
            return sum("Sequence" in item for item in processor.get("single", ())) == 1
    return processor.get("type") == "ByteLevel"
