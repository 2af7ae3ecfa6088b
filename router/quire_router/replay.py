"""What a router remembers of one stream so that it can go on at another worker: the protocol of `contract.resume`, at the reading end.

    from the worker   | : s <state>\n: t 0 17\ndata: a\n\n | : t 0 4,9\n\n | : keep-alive\n\n | : f 0\ndata: b\n\n |
    to the client     | data: a\n\n                        |               | : keep-alive\n\n | data: b\n\n       |

Comment lines stand before an event's other lines, so an event is looked at only where it begins. Token ids are kept as they were written,
a few bytes each, and become numbers when a stream does go on. Pure: no sockets, no clock.
"""

from collections.abc import Callable, Iterable

import msgspec

from quire_contract import names
from quire_contract.openai.errors import CODE_ENGINE_DEAD
from quire_contract.resume import MIGRATE_EVENT, ResumedChoice, ResumeEnvelope
from quire_router.call import Usage

_MIGRATE = MIGRATE_EVENT[2:-2]
DIED = b'"code":"%b"' % CODE_ENGINE_DEAD.encode()
"""A worker's server says so when its engine is gone. No text can hold this, but what an answer repeats of its request can: `metadata`,
`tools`. So an event with it is read as well."""
MAX_RECORD_BYTES = 16 * 1024 * 1024
"""Of one stream's token ids: more than workers take back in an envelope."""
MAX_CHOICES = 4096
MAX_STATE_BYTES = 8192
MAX_TOKENS = 2**40
"""Of one answer; a larger number is a mistake, and is counted as this."""
_IDS = msgspec.json.Decoder(list[int])


class _Fault(msgspec.Struct, frozen=True):
    code: str | None = None


class _Failed(msgspec.Struct, frozen=True):
    error: _Fault | None = None


class _End(msgspec.Struct, frozen=True):
    """An event that says why a stream ends, in the form of any API."""

    type: str | None = None
    code: str | None = None
    error: _Fault | None = None
    response: _Failed | None = None


_END = msgspec.json.Decoder(_End)
_ENDS: dict[str, tuple[bytes, ...]] = {
    names.PATH_RESPONSES: (
        b"event: response.completed\n",
        b"event: response.failed\n",
        b"event: response.incomplete\n",
        b"event: error\n",
    ),
    names.PATH_MESSAGES: (b"event: message_stop\n", b"event: error\n"),
}
_DONE = (b"data: [DONE]\n",)
TakeEvents = Callable[["Replay", bytes, int, int, bytes], bytes | None]
"""As `Replay.take`, on the fields of one, for events of the usual kind. None: some are not, and nothing was noted."""


class Replay:
    """One stream. Give it each part that arrives; send on what it gives back."""

    __slots__ = (
        "_finished",
        "_ids",
        "_last",
        "_last_choice",
        "_num_bytes",
        "_take_events",
        "died",
        "is_over",
        "is_usable",
        "migrates",
        "num_events",
        "state",
        "usage",
    )

    def __init__(self, usage: Usage, take_events: TakeEvents | None = None) -> None:
        """`usage` is filled in as the stream goes, so that it is right whenever that ends. `take_events`: of the extension module."""
        self.usage = usage
        self._take_events = take_events
        self.state: str | None = None
        """None: the stream has not begun, or its worker knows nothing of token replay."""
        self.num_events = 0
        """With data, given back so far."""
        self.migrates = False
        """The worker drains and asks that the stream goes on elsewhere."""
        self.died = False
        """The worker's engine died, and its server says so: that event is not given back."""
        self.is_over = False
        """Either of these: nothing more comes from this worker."""
        self.is_usable = True
        """Nothing was seen that makes what is remembered wrong."""
        self._ids: dict[bytes, bytearray] = {}
        self._finished: set[bytes] = set()
        self._last = b""
        self._last_choice = b""
        self._num_bytes = 0

    def take(self, part: bytes) -> bytes:
        """`part` (whole events) as the client gets it; b"" if nothing is left of it."""
        if self._take_events is not None:
            taken = self._take_events(self, part, MAX_RECORD_BYTES, MAX_CHOICES, DIED)
            if taken is not None:
                return taken
        if part.find(b"\n\n") == len(part) - 2:  # one event, as workers write them
            return self._take_event(part)
        if b"\n\n\n" in part:  # no worker writes so, and a megabyte of it would be half a million events
            self.is_usable = False
            return part
        events = part.split(b"\n\n")
        if events.pop():
            self.is_usable = False  # an event too long to be held: it could not be looked at as a whole
            return part
        return b"".join([self._take_event(event + b"\n\n") for event in events])

    def resumed(self) -> None:
        """Another worker goes on with it."""
        self.migrates = self.died = self.is_over = False

    def has_ended(self, path: str) -> bool:
        """Whether the last event is one with which streams of this API end."""
        return self._last.startswith(_ENDS.get(path, _DONE))

    def envelope(self, path: str, body: bytes) -> bytes | None:
        """What another worker needs to go on with the stream; `body` as the first one got it. None: it cannot go on."""
        if self.state is None or not self.is_usable:
            return None
        try:
            choices = [
                ResumedChoice(
                    index=int(choice),
                    token_ids=_IDS.decode(b"[%b]" % bytes(self._ids.get(choice, b""))),
                    finished=choice in self._finished,
                )
                for choice in sorted(self._ids.keys() | self._finished, key=int)
            ]
            envelope = ResumeEnvelope(
                path=path,
                body=body.decode(),
                state=self.state,
                num_events=self.num_events,
                choices=choices,
                last_choice=int(self._last_choice) if self._last_choice else None,
            )
        except ValueError:  # of both decoders: a worker wrote something else than ids, or the body was no UTF-8
            return None
        return msgspec.json.encode(envelope)

    def _take_event(self, event: bytes) -> bytes:
        start = 0
        while event.startswith(b": ", start):
            end = event.index(b"\n", start)
            if event.startswith(b"t ", start + 2):  # nearly all are
                self._note_tokens(event[start + 4 : end])
            elif not self._note(event[start + 2 : end]):
                break
            start = end + 1
        if start:
            if start + 1 == len(event):
                return b""
            event = event[start:]
        elif DIED in event and _tells_of_death(event):
            self.died = self.is_over = True
        if self.died:  # what follows, [DONE] perhaps, would end the stream
            return b""
        if not event.startswith(b":"):
            self.num_events += 1
            self._last = event
        return event

    def _note(self, line: bytes) -> bool:
        """Remember a comment line. Whether it is one of ours."""
        kind = line[:2]
        try:
            if kind == b"f ":
                if self._has_room(len(line)):
                    self._finished.add(line[2:])
            elif kind == b"u ":
                self._note_usage(line[2:])
            elif kind == b"s ":
                if len(line) > MAX_STATE_BYTES:
                    raise ValueError("no state is so long")
                self.state = line[2:].decode("ascii")
            elif line == _MIGRATE:
                self.migrates = self.is_over = True
            else:
                return False
        except ValueError:
            self.is_usable = False
        return True

    def _note_tokens(self, said: bytes) -> None:
        choice, _, ids = said.partition(b" ")
        self.usage.output += ids.count(b",") + 1
        if not self._has_room(len(said)):
            return
        self._last_choice = choice
        held = self._ids.get(choice)
        if held is None:
            self._ids[choice] = bytearray(ids)
        else:
            held += b"," + ids

    def _has_room(self, num_bytes: int) -> bool:
        """Whether so much more may be remembered. If not, all is forgotten: a part of it would be of no use."""
        size = self._num_bytes = self._num_bytes + num_bytes
        if size <= MAX_RECORD_BYTES and len(self._ids) <= MAX_CHOICES and len(self._finished) <= MAX_CHOICES:
            return True
        self._ids.clear()
        self._finished.clear()
        self._last_choice = b""
        self.is_usable = False
        return False

    def _note_usage(self, numbers: bytes) -> None:
        prompt, cached, output = _counts(numbers.split())
        if not self.usage.prompt:  # of a stream that goes on, the first worker's
            self.usage.prompt, self.usage.cached = prompt, cached
        self.usage.output = max(self.usage.output, output)


def _tells_of_death(event: bytes) -> bool:
    """Whether the event's own error is that the engine is gone."""
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    try:
        end = _END.decode(b"\n".join(lines))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    failed = None if end.response is None else end.response.error
    codes = [fault.code for fault in (end.error, failed) if fault is not None]
    return CODE_ENGINE_DEAD in codes or (end.type == "error" and end.code == CODE_ENGINE_DEAD)


def _counts(numbers: Iterable[bytes | str]) -> list[int]:
    """Numbers of tokens. ValueError for what is none."""
    counts = list(map(int, numbers))
    if counts and min(counts) < 0:
        raise ValueError("a number of tokens is negative")
    return [min(count, MAX_TOKENS) for count in counts] if counts and max(counts) > MAX_TOKENS else counts


def usage_of_header(value: str | None) -> Usage | None:
    """What an answer that is no stream says it cost. None: it does not say."""
    if value is None:
        return None
    try:
        prompt, cached, output = _counts(value.split(","))
    except ValueError:
        return None
    return Usage(prompt=prompt, cached=cached, output=output)
