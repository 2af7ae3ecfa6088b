"""What the router reads of a body: the fields that route it and decide its prompt, and its model.

Usual chats are read by the extension `native`, whatever else by `routing_fields`, which refuses what is not right: of a usual chat both say
the same.
"""

from typing import Any

import msgspec

from quire_contract import names
from quire_contract.openai.errors import CODE_INVALID_JSON, ApiError, invalid
from quire_contract.openai.limits import Limits
from quire_contract.openai.messages import ChatMessage
from quire_contract.openai.requests import RoutingFields
from quire_contract.routing import PATHS_WITH_PROMPT, routing_fields

USUAL_BYTES = 64 * 1024
"""No larger body is a usual chat."""
_PATHS_AS_THEY_ARE = frozenset({names.PATH_CHAT, names.PATH_COMPLETIONS})
"""Whose bodies have the fields themselves; those of others are converted."""

Read = tuple[RoutingFields | None, str | None]
"""What a body says of its prompt (None: its path has none), and its model."""


class ModelField(msgspec.Struct, frozen=True):
    """The one field that routes a call without a prompt."""

    model: str | None = None


class BodyReader:
    """One for the process; safe to use from several threads."""

    def __init__(self, limits: Limits, parts: Any) -> None:
        """`parts`: the extension module `native`; None: there is none."""
        self._limits = limits
        self._usual = None if parts is None else usual_chats(limits, parts)

    def read(self, path: str, body: bytes) -> Read:
        """What is read of the body of a call to `path`. ApiError."""
        if self._usual is not None and path in _PATHS_AS_THEY_ARE:
            usual: RoutingFields | None = self._usual(body)
            if usual is not None:
                return usual, usual.model
        if path not in PATHS_WITH_PROMPT:
            return None, _model_of(body)
        fields = routing_fields(path, body, self._limits)
        return fields, fields.model


def usual_chats(limits: Limits, parts: Any) -> Any:
    """What reads the fields of a usual chat from its bytes; it gives None for any other body."""
    max_bytes = min(USUAL_BYTES, limits.max_body_bytes)
    chats = parts.ChatBody(RoutingFields, ChatMessage, max_bytes, limits.max_messages, limits.max_cache_salt_chars)
    return chats.read


def _model_of(body: bytes) -> str | None:
    """`model` of a body without a prompt to route by. ApiError 400 if the body is no JSON object with a usable one."""
    try:
        return msgspec.json.decode(body, type=ModelField).model
    except msgspec.ValidationError as error:
        raise invalid("model", str(error), "invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code=CODE_INVALID_JSON) from None
