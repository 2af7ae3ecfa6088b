"""The texts of a request's body, whichever API it is of, and the body with other texts in their places.

A text is any string below one of the fields that become a prompt: what is not known here is looked at rather than let through. Ids of
tokens are texts that somebody else must read (`token_ids`). What is not changed stays as the client wrote it, byte for byte.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from quire_contract.openai.errors import CODE_INVALID_JSON, ApiError, invalid

_FIELDS = (
    "messages",
    "system",
    "instructions",
    "input",
    "prompt",
    "suffix",
    "query",
    "documents",
    "text_1",
    "text_2",
    "tools",
    "functions",
    "chat_template",
    "chat_template_kwargs",
    "prompt_token_ids",
    "input_ids",
)
"""Some only other vendors' workers take."""
_UNREADABLE_FIELDS = ("prompt_embeds", "input_embeds")
"""A prompt of vectors: nobody can say what it says."""
_OPEN_FIELDS = frozenset({"tools", "functions", "chat_template_kwargs"})
"""Any key may stand anywhere in them, and any value may become part of the prompt, numbers too."""
_NO_TEXT = frozenset({"role", "type"})
_TYPES = frozenset({"function", "object", "array", "string", "number", "integer", "boolean", "null"})
"""Under "type" in a tool's schema these say nothing."""
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_ARGUMENTS = "arguments"
_OBJECTS_OF_TOOLS = frozenset({_ARGUMENTS, "input"})
"""Below these inside a message any key may stand, "role" and "type" too, and is a tool's own."""
_FIELDS_WITH_IDS = frozenset({"prompt", "input", "prompt_token_ids", "input_ids"})
"""A list of numbers is a prompt here, and so is one in a list. Further below (bytes of log-probabilities) it is none."""

_MAX_IDS_DEPTH = 2

Path = tuple[str | int, ...]


class Place(NamedTuple):
    """A text of a body."""

    path: Path
    text: str
    is_json: bool
    """Whether it is JSON text itself."""
    ids: list[int] | None = None
    """Its token ids, if it was sent as such; `text` is empty until somebody has read them."""
    is_readable: bool = True
    """Otherwise `text` says nothing."""


def texts_of(body: bytes) -> list[Place]:
    """All texts. ApiError 400 if the body is no JSON object."""
    try:
        fields = _RAW_OBJECT.decode(body)
        blind = [name for name in _UNREADABLE_FIELDS if name in fields and bytes(fields[name]) != b"null"]
        return [Place((name,), "", is_json=False, is_readable=False) for name in blind] + [
            place
            for name in _FIELDS
            if name in fields
            for place in _texts((name,), msgspec.json.decode(fields[name]), in_tool=name in _OPEN_FIELDS)
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code=CODE_INVALID_JSON) from None


def with_texts(body: bytes, changed: Mapping[Path, str | list[int]]) -> bytes:
    """The body with other texts, or token ids, at these places, all of which it has."""
    tree: dict[str | int, Any] = {}
    for path, text in changed.items():
        below = tree
        for step in path[:-1]:
            below = below.setdefault(step, {})
        below[path[-1]] = text
    return bytes(_edited(msgspec.Raw(body), tree))


def place_name(path: Path) -> str:
    """As errors write it: messages[3].content[0].text."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _texts(path: Path, value: Any, *, in_tool: bool = False) -> Iterator[Place]:
    if isinstance(value, str):
        yield Place(path, value, is_json=path[-1] == _ARGUMENTS and not in_tool)
    elif isinstance(value, list):
        if len(path) <= _MAX_IDS_DEPTH and path[0] in _FIELDS_WITH_IDS and any(map(_is_number, value)):
            yield Place(path, "", is_json=False, ids=_ids(path, value))
            return
        for i, item in enumerate(value):
            if in_tool or not isinstance(item, int):
                yield from _texts((*path, i), item, in_tool=in_tool)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not _says_nothing(key, item, in_tool=in_tool):
                opens = len(path) > 1 and key in _OBJECTS_OF_TOOLS and isinstance(item, dict)
                yield from _texts((*path, key), item, in_tool=in_tool or opens)
    elif in_tool and isinstance(value, int | float) and not isinstance(value, bool):
        yield Place(path, str(value), is_json=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _ids(path: Path, values: list[Any]) -> list[int]:
    """ApiError 400 for a list that holds something else, too: workers differ in what they make of it."""
    if set(map(type, values)) != {int}:  # there may be a million: no loop of ours goes over good ones
        wrong = next(i for i, value in enumerate(values) if type(value) is not int)
        raise invalid(
            place_name((*path, wrong)),
            "is no token id; a list holds texts, token ids or lists of them, not several kinds",
        )
    return values


def _says_nothing(key: str, item: Any, *, in_tool: bool) -> bool:
    if in_tool:
        return key == "type" and isinstance(item, str) and item in _TYPES
    return key in _NO_TEXT


def _edited(raw: msgspec.Raw, tree: Mapping[str | int, Any]) -> msgspec.Raw:
    if isinstance(next(iter(tree)), int):
        items: Any = _RAW_LIST.decode(raw)
    else:
        items = _RAW_OBJECT.decode(raw)
    for step, below in tree.items():
        new = _edited(items[step], below) if isinstance(below, dict) else msgspec.json.encode(below)
        items[step] = msgspec.Raw(new)
    return msgspec.Raw(msgspec.json.encode(items))
