"""What the beginning of a stream decided, besides its tokens: told to the router when it begins, read where it goes on. Pure."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from quire_contract.openai.errors import ApiError, invalid
from quire_contract.openai.limits import Limits

_MAX_CHARS = 8192
_VERSION = 1
_UINT64 = Annotated[int, msgspec.Meta(ge=0)]
CODE_OTHER_MODEL = "other_model"


class ReplayState(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """Of one answer."""

    version: int = _VERSION
    id: str
    """The answer's."""
    created: _UINT64
    """Unix seconds."""
    seed: _UINT64
    """What counts where the body has none, 64 bits."""
    model: str
    """Digest of what makes tokens of text and text of tokens."""
    cached: dict[int, int]
    """Tokens found in the prefix cache, by the prompt's number, as far as that was known."""


def encoded(state: ReplayState) -> bytes:
    """Base64url of msgpack."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(state)).rstrip(b"=")


def decoded(text: str, *, id_prefix: str, model: str, limits: Limits) -> ReplayState:
    """ApiError 400 for what is no state of an answer whose ids begin so, 409 for one of a worker with another model."""
    if len(text) > _MAX_CHARS:
        raise invalid("state", f"is longer than {_MAX_CHARS} characters")
    try:
        data = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        state = msgspec.msgpack.decode(data, type=ReplayState)
    except (binascii.Error, msgspec.DecodeError, ValueError):
        raise invalid("state", "is not what a worker wrote into the stream's first event") from None
    is_ours = (
        state.version == _VERSION
        and re.fullmatch(re.escape(id_prefix) + "[0-9a-f]{32}", state.id) is not None
        and state.seed < 2**64
        and _are_counts(state.cached, limits.max_prompts)
    )
    if not is_ours:
        raise invalid("state", "was written by a worker of another version, or for another path")
    if state.model != model:
        raise ApiError(
            409,
            "The stream began on a worker with another model, tokenizer or chat template; it can go on only where those are the same.",
            param="state",
            code=CODE_OTHER_MODEL,
        )
    return state


def _are_counts(cached: Mapping[int, int], max_prompts: int) -> bool:
    return all(0 <= prompt < max_prompts and num_tokens >= 0 for prompt, num_tokens in cached.items())
