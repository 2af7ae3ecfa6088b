"""Texts and pairs of texts to token ids, as a model that embeds or scores them takes them: special tokens included, cut where asked.

The tokenizer's own post-processor adds the special tokens, after the cut, so that a text that was cut still ends as the model expects.
Pure.
"""

from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from quire_contract.openai.errors import CODE_CONTEXT_LENGTH, ApiError, invalid
from quire_contract.openai.model_checks import check_token_ids

_MAX_CHARS_PER_TOKEN = 128
"""Tokenising megabytes takes seconds: of a text longer than this many characters for each token that it may have, no more is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How long an input may be."""

    longest: int
    """Tokens at most, special ones included."""
    truncates: bool
    """A longer one is cut; otherwise it is refused."""


class TextEncoder:
    """For one model. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, max_model_len: int) -> None:
        """`tokenizer` neither truncates nor pads."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len

    def cut(self, truncate_prompt_tokens: int | None) -> Cut:
        """What a request's `truncate_prompt_tokens` means. ApiError 400 if it is more than the model takes."""
        asked = truncate_prompt_tokens
        if asked is not None and asked > self._max_model_len:
            raise invalid("truncate_prompt_tokens", f"must be at most {self._max_model_len}, which this model takes")
        longest = self._max_model_len if asked is None or asked == -1 else asked
        return Cut(longest=longest, truncates=asked is not None)

    def one(self, value: str | list[int], cut: Cut, param: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, or the ids themselves. ApiError 400, naming `param`, if they are too many, none or unknown."""
        if isinstance(value, list):
            check_token_ids(value, self._vocab_size, param)
            return value[: cut.longest] if cut.truncates else self._fitting(value, cut, param)
        encoding = self._encode(value, cut, param)
        if cut.truncates:
            num_special = self._tokenizer.num_special_tokens_to_add(False) if add_special_tokens else 0
            encoding.truncate(self._room(cut, num_special))
        if add_special_tokens:
            encoding = self._tokenizer.post_process(encoding, None, True)
        return self._fitting(encoding.ids, cut, param)

    def pair(self, first: str, second: str, cut: Cut, param: str) -> tuple[list[int], int]:
        """Token ids of two texts as one input, and where the second begins. ApiError 400 as above.

        A cut takes from the longer text, then from both, as transformers' `longest_first` does.
        """
        encodings = self._encode(first, cut, param), self._encode(second, cut, param)
        if cut.truncates:
            room = self._room(cut, self._tokenizer.num_special_tokens_to_add(True))
            for encoding, length in zip(encodings, _shares(len(encodings[0]), len(encodings[1]), room), strict=True):
                encoding.truncate(length)
        whole = self._tokenizer.post_process(*encodings, True)
        ids = self._fitting(whole.ids, cut, param)
        return ids, next((i for i, kind in enumerate(whole.type_ids) if kind), len(ids))

    def _encode(self, text: str, cut: Cut, param: str) -> Encoding:
        most = cut.longest * _MAX_CHARS_PER_TOKEN
        if len(text) > most:
            if not cut.truncates:
                raise _too_long(param, f"{len(text)} characters", cut.longest)
            text = text[:most]
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]

    def _fitting(self, ids: list[int], cut: Cut, param: str) -> list[int]:
        if len(ids) > cut.longest:
            raise _too_long(param, f"{len(ids)} tokens", cut.longest)
        if not ids:
            raise invalid(param, "is empty; at least one token is needed")
        return ids

    def _room(self, cut: Cut, num_special: int) -> int:
        if cut.longest < num_special:
            raise invalid("truncate_prompt_tokens", f"must be at least {num_special}: so many special tokens are added")
        return cut.longest - num_special


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that two texts keep of `room`: only the longer one loses until both are equally long."""
    if first + second <= room:
        return first, second
    half = room // 2
    if first <= half:
        return first, room - first
    if second <= half:
        return room - second, second
    return (half, room - half) if first <= second else (room - half, half)


def _too_long(param: str, what: str, longest: int) -> ApiError:
    return ApiError(
        400,
        f"{param}: has {what}, but this model takes at most {longest} tokens; shorten it, "
        "or send truncate_prompt_tokens: -1 to have it cut.",
        param=param,
        code=CODE_CONTEXT_LENGTH,
    )
