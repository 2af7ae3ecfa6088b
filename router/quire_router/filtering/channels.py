"""The texts of an answer that is being streamed, each with a filter of its own; and what its filters need to know of the request."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import msgspec

from quire_contract import names
from quire_router.answer import BrokenStreamError
from quire_router.filtering.json_text import JsonTextFilter
from quire_router.filtering.text_filter import Rule, TextFilter

FINISH_FILTERED = "content_filter"
Key = Hashable


class Piece(NamedTuple):
    """An event for the client."""

    data: bytes
    choice: int | None
    """Whose text it holds; None: of no one in particular."""
    text: str = ""
    """What the client reads in it."""
    is_end: bool = False
    """Whether the choice ends with it."""
    repeats: bool = False
    """Whether it holds text that came before."""

    @property
    def says(self) -> bool:
        """Whether it may not be sent when the text is withheld."""
        return bool(self.text) or self.is_end or self.repeats


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Format(msgspec.Struct, frozen=True):
    type: str | None = None


class _Text(msgspec.Struct, frozen=True):
    format: _Format | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of its answer."""

    num_choices: int
    include_usage: bool
    is_json: bool
    """Whether the answer's text is to be JSON."""

    @staticmethod
    def of(body: bytes, path: str) -> "Asked":
        """Of a body that a worker has answered. Fields that say nothing here may be anything: workers differ in what they ignore."""
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        options, prompts = (
            _read(fields, "stream_options", _StreamOptions),
            _read(fields, "prompt", list[str | list[int]]),
        )
        wrapped = [_read(fields, name, _Text) for name in ("text", "output_config")]
        formats = [_read(fields, "response_format", _Format), *(part.format for part in wrapped if part is not None)]
        num_prompts = len(prompts) if path == names.PATH_COMPLETIONS and prompts else 1
        return Asked(
            num_choices=int(_read(fields, "n", int | float) or 1) * num_prompts,
            include_usage=options is not None and options.include_usage is True,
            is_json=any(form is not None and form.type in ("json_object", "json_schema") for form in formats)
            or b'"json' in bytes(fields.get("structured_outputs", b"")),
        )


def _read(fields: dict[str, msgspec.Raw], name: str, kind: Any) -> Any:
    """A field as a `kind`; None: it is not there, or something else."""
    try:
        return msgspec.json.decode(fields[name], type=kind) if name in fields else None
    except msgspec.ValidationError:
        return None


class Channels:
    """All texts of one answer that are open."""

    def __init__(self, rules: Sequence[Rule], on_hit: Callable[[Rule], None], *, is_json: bool) -> None:
        """`is_json`: of what the answer says; calls' arguments always are."""
        self._rules = rules
        self._on_hit = on_hit
        self._is_json = is_json
        self._open: dict[Key, TextFilter | JsonTextFilter] = {}
        self.hides = any(rule.action != "flag" for rule in rules)
        """Whether the client may not see all of the text: token ids and log-probabilities would tell it."""

    def feed(self, key: Key, text: str, *, is_json: bool | None = None) -> tuple[str, bool]:
        """What of a text may go on, and whether it ends there because of a filter. `is_json` None: as the answer is."""
        if not self._rules:  # a moderator alone
            return text, False
        channel = self._open.get(key)
        if channel is None:
            channel = self._open[key] = self._new(is_json)
        return channel.feed(text), channel.blocked_by is not None

    def end(self, key: Key) -> tuple[str, bool]:
        """What was held of a text that has ended."""
        channel = self._open.pop(key, None)
        if channel is None:
            return "", False
        return channel.end(), channel.blocked_by is not None

    def whole(self, text: str, *, is_json: bool | None = None) -> tuple[str, bool]:
        """The same for a text that is all there."""
        if not self._rules:
            return text, False
        channel = self._new(is_json)
        return channel.whole(text), channel.blocked_by is not None

    @property
    def open_keys(self) -> list[Key]:
        """In the order in which they began."""
        return list(self._open)

    def _new(self, is_json: bool | None) -> TextFilter | JsonTextFilter:
        kind = JsonTextFilter if (self._is_json if is_json is None else is_json) else TextFilter
        return kind(self._rules, self._on_hit)


class Event(NamedTuple):
    """One server-sent event."""

    raw: bytes
    data: dict[str, Any] | None
    """None: a comment, or the end."""


def events_of(part: bytes) -> list[Event]:
    """The events of whole ones in a row. BrokenStreamError if one cannot be read: what is not understood must not pass a filter."""
    return [_event(raw) for raw in part.replace(b"\r\n", b"\n").split(b"\n\n") if raw]


def _event(raw: bytes) -> Event:
    lines = [line[5:].removeprefix(b" ") for line in raw.split(b"\n") if line.startswith(b"data:")]
    data = b"\n".join(lines)
    if not lines or data == b"[DONE]":
        return Event(raw + b"\n\n", None)
    try:
        return Event(raw + b"\n\n", msgspec.json.decode(data, type=dict[str, Any]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BrokenStreamError("sent an event that the content filters cannot read") from None


def plain_event(data: dict[str, Any]) -> bytes:
    """An event as chats have it."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def typed_event(data: dict[str, Any]) -> bytes:
    """An event that is named after its type."""
    return b"event: %b\ndata: %b\n\n" % (str(data["type"]).encode(), msgspec.json.encode(data))
