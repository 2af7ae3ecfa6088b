"""From token ids to text, whole or as they come.

Nearly every generating model's decoder is one of two: ByteLevel (a token is some bytes), or pieces with "▁" for a space and byte
tokens like <0xE4>. For both a token's bytes do not depend on its neighbours, so a stream only holds back an unfinished UTF-8
sequence. Other decoders go through a sliding window over the tokenizer's own decode.

Text equals `Tokenizer.decode`, with one exception: in a run of byte tokens that is not valid UTF-8 as a whole, valid characters
are kept, because a stream has sent them already; `decode` here does the same, so streamed and whole answers agree.
"""

import codecs
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
_ESCAPED = re.compile("[\udc80-\udcff]")
_REPLACEMENT = "\ufffd"
_MAX_HELD_TOKENS = 16
_PRIMING_TOKENS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rules:
    """What the recognised decoders do."""

    is_byte_level: bool
    has_byte_tokens: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    """Applied to every token, in order."""
    strip_char: str = ""
    """Removed from the start of the whole text, ..."""
    strip_count: int = 0
    """... at most so many."""
    dropped_in_first: str = ""
    """Removed wherever it stands in the first token."""


class TokenStream(Protocol):
    """Turns the tokens of one choice into text as they come. The pieces joined are `decode` of all ids."""

    def push(self, token_id: int) -> str:
        """Text that this token completes; "" while a character is unfinished."""
        ...

    def finish(self) -> str:
        """What was held back; the stream is over."""
        ...


class Detokenizer:
    """Decodes for one tokenizer. Safe to share between streams."""

    def __init__(self, tokenizer: Tokenizer, tokenizer_json: bytes) -> None:
        self._tokenizer = tokenizer
        self._rules = _rules_of(msgspec.json.decode(tokenizer_json, type=_DecoderField).decoder)
        self._special_ids = frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        self._pieces: dict[int, tuple[bytes, bool]] = {}
        """Of known tokens, filled as they are asked for."""

    def longest_token_chars(self) -> int | None:
        """Characters of text that one token can cover at most; None where an unknown token may cover any number."""
        if self._rules is None or not (self._rules.is_byte_level or self._rules.has_byte_tokens):
            return None
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)

    def added_token(self, text: str) -> tuple[int, bool] | None:
        """(id, whether it is special) of the token that was added to the vocabulary as exactly this text."""
        token_id = self._tokenizer.token_to_id(text)
        if token_id is None or token_id not in self._tokenizer.get_added_tokens_decoder():
            return None
        return token_id, token_id in self._special_ids

    def is_visible(self, token_id: int, skip_special_tokens: bool) -> bool:
        """Whether the token is decoded at all: ids that the tokenizer does not know never are."""
        if skip_special_tokens and token_id in self._special_ids:
            return False
        return token_id in self._pieces or self._tokenizer.id_to_token(token_id) is not None

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that the token stands for inside a text; b"" for an unknown id."""
        if self._rules is not None:
            return self.piece(token_id)[0]
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text.encode()

    def token_text(self, token_id: int) -> str:
        """The token as text inside a text, U+FFFD for bytes that are not whole characters."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def stream(
        self,
        *,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
        shown_token_ids: Collection[int] = (),
    ) -> TokenStream:
        """A stream for one choice. Special tokens in `shown_token_ids` are never skipped.

        With `prompt_ids` the text goes on where that prompt ends: a leading space is kept, and a character that the prompt leaves
        unfinished can be completed. Without, it is the text of the output ids alone.
        """
        if self._rules is None:
            stream: TokenStream = _WindowStream(
                self, self._tokenizer, skip_special_tokens, _tail(self, prompt_ids, skip_special_tokens)
            )
        else:
            stream = _PieceStream(self, self._rules, skip_special_tokens, _tail(self, prompt_ids, skip_special_tokens))
        return _ShowingStream(self, stream, frozenset(shown_token_ids)) if shown_token_ids else stream

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of the ids."""
        stream = self.stream(skip_special_tokens=skip_special_tokens)
        pieces = [stream.push(token_id) for token_id in token_ids]
        return "".join((*pieces, stream.finish()))

    def raw_token(self, token_id: int) -> str:
        """The token as the vocabulary spells it; "" for an unknown id."""
        return self._tokenizer.id_to_token(token_id) or ""

    def piece(self, token_id: int) -> tuple[bytes, bool]:
        """(bytes of the token, whether it is a byte token)."""
        found = self._pieces.get(token_id)
        if found is not None:
            return found
        assert self._rules is not None, "only recognised decoders have pieces"
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b"", False
        return self._pieces.setdefault(token_id, _piece(self._rules, token))


class _PieceStream:
    """Stream for the recognised decoders: O(1) a token."""

    def __init__(self, detokenizer: Detokenizer, rules: _Rules, skip_special: bool, prompt_tail: Sequence[int]) -> None:
        self._detokenizer = detokenizer
        self._rules = rules
        self._skip_special = skip_special
        # One U+FFFD for each broken sequence (ByteLevel) or for each of its bytes (byte tokens), as `tokenizers` has it.
        errors = "replace" if rules.is_byte_level else "surrogateescape"
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors=errors)
        self._is_first = True
        self._strips_left = rules.strip_count
        for token_id in prompt_tail:
            self.push(token_id)
        if prompt_tail:
            self._strips_left = 0

    def push(self, token_id: int) -> str:
        if not self._detokenizer.is_visible(token_id, self._skip_special):
            return ""
        data, is_byte = self._detokenizer.piece(token_id)
        if self._is_first:
            self._is_first = False
            data = data if not self._rules.dropped_in_first else self._first_piece(token_id)
        goes_on = self._rules.is_byte_level or is_byte
        text = self._decoder.decode(data if goes_on else b"", final=not goes_on)
        return self._tidy(text if goes_on else text + data.decode())

    def finish(self) -> str:
        return self._tidy(self._decoder.decode(b"", final=True))

    def _first_piece(self, token_id: int) -> bytes:
        token = self._detokenizer.raw_token(token_id)
        return token.replace(self._rules.dropped_in_first, "").encode()

    def _tidy(self, text: str) -> str:
        if not self._rules.is_byte_level and text:
            text = _ESCAPED.sub(_REPLACEMENT, text)
        while self._strips_left and text:
            if text[0] != self._rules.strip_char:
                self._strips_left = 0
            else:
                self._strips_left -= 1
                text = text[1:]
        return text


class _ShowingStream:
    """Any stream, with some special tokens shown as they are spelt. What is unfinished before one is let out: they are no part of words."""

    def __init__(self, detokenizer: Detokenizer, stream: TokenStream, shown: frozenset[int]) -> None:
        self._detokenizer = detokenizer
        self._stream = stream
        self._shown = shown

    def push(self, token_id: int) -> str:
        if token_id not in self._shown:
            return self._stream.push(token_id)
        return self._stream.finish() + self._detokenizer.raw_token(token_id)

    def finish(self) -> str:
        return self._stream.finish()


class _WindowStream:
    """Stream for any other decoder: decodes a few tokens again with each new one."""

    def __init__(
        self, detokenizer: Detokenizer, tokenizer: Tokenizer, skip_special: bool, prompt_tail: Sequence[int]
    ) -> None:
        self._detokenizer = detokenizer
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._window = list(prompt_tail)
        self._num_sent = len(self._window)

    def push(self, token_id: int) -> str:
        if not self._detokenizer.is_visible(token_id, self._skip_special):
            return ""
        self._window.append(token_id)
        text = self._new_text()
        num_held = len(self._window) - self._num_sent
        if not text or (text.endswith(_REPLACEMENT) and num_held < _MAX_HELD_TOKENS):
            return ""
        self._window = self._window[self._num_sent :]
        self._num_sent = len(self._window)
        return text

    def finish(self) -> str:
        text = self._new_text()
        self._num_sent = len(self._window)
        return text

    def _new_text(self) -> str:
        sent: str = self._tokenizer.decode(self._window[: self._num_sent], skip_special_tokens=False)
        both: str = self._tokenizer.decode(self._window, skip_special_tokens=False)
        return both[len(sent) :]


def _tail(detokenizer: Detokenizer, prompt_ids: Sequence[int], skip_special: bool) -> list[int]:
    """The last few visible ids of a prompt, in order."""
    tail: list[int] = []
    for token_id in reversed(prompt_ids):
        if detokenizer.is_visible(token_id, skip_special):
            tail.append(token_id)
            if len(tail) == _PRIMING_TOKENS:
                break
    return tail[::-1]


class _DecoderField(msgspec.Struct):
    """The part of tokenizer.json that says how to decode."""

    decoder: dict[str, Any] | None = None


def _rules_of(decoder: dict[str, Any] | None) -> _Rules | None:
    """Rules of a decoder that is recognised; None for any other."""
    steps = [decoder] if decoder and decoder.get("type") != "Sequence" else (decoder or {}).get("decoders", [])
    names = [step.get("type") for step in steps]
    if names == ["ByteLevel"]:
        return _Rules(is_byte_level=True)
    if names == ["Metaspace"]:
        mark = steps[0].get("replacement", "▁")
        dropped = "" if steps[0].get("prepend_scheme", "always") == "never" else mark
        return _Rules(is_byte_level=False, replacements=((mark, " "),), dropped_in_first=dropped)
    if "".join(_STEP_LETTERS.get(str(name), "?") for name in names) not in _KNOWN_SEQUENCES:
        return None
    return _sequence_rules(steps)


_STEP_LETTERS = {"Replace": "R", "ByteFallback": "B", "Fuse": "F", "Strip": "S"}
_KNOWN_SEQUENCES = {"RBF", "RBFS", "RRBF", "RRBFS", "BF", "BFS", "RF", "RFS"}


def _sequence_rules(steps: list[dict[str, Any]]) -> _Rules | None:
    replacements: list[tuple[str, str]] = []
    strip_char, strip_count = "", 0
    for step in steps:
        if step["type"] == "Replace":
            pattern = step.get("pattern", {}).get("String")
            if not pattern:
                return None
            replacements.append((pattern, step.get("content", "")))
        if step["type"] == "Strip":
            if step.get("stop"):
                return None
            strip_char, strip_count = step.get("content", " "), step.get("start", 0)
    return _Rules(
        is_byte_level=False,
        has_byte_tokens=any(step["type"] == "ByteFallback" for step in steps),
        replacements=tuple(replacements),
        strip_char=strip_char,
        strip_count=strip_count,
    )


def _piece(rules: _Rules, token: str) -> tuple[bytes, bool]:
    if rules.is_byte_level:
        return _byte_level_bytes(token), False
    match = _BYTE_TOKEN.match(token) if rules.has_byte_tokens else None
    if match is not None:
        return bytes.fromhex(match[1]), True
    for pattern, content in rules.replacements:
        token = token.replace(pattern, content)
    return token.encode(), False


def _byte_level_alphabet() -> dict[str, int]:
    """Character of each byte in ByteLevel vocabularies: printable Latin-1 stands for itself, the rest for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    if all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return token.encode()  # an added token outside the alphabet is itself
