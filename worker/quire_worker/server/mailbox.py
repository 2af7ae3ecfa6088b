"""Where the engine's answers to one HTTP request arrive, and how much of them may wait to be taken.

A plain list and one waiter, because a step brings tokens of many choices and their reader should wake once for all of them.

The engine never waits for a reader. What a client does not take stays in its mailbox, so mailboxes have a bound in bytes, each and all
together: the one that is beyond it is cut. It loses what it holds and takes no more, its reader gets an error, and nobody else notices.
"""

import asyncio
from typing import NamedTuple

from quire_worker.engine.messages import ChoiceOutput, Rejected
from quire_worker.errors import QuireWorkerError

Item = ChoiceOutput | Rejected
DEFAULT_UNREAD_BYTES = 256 * 2**20
_SHARE_OF_ONE = 16
"""One mailbox may hold this part of what all may."""
_MAIL_BYTES = 550
_TOKEN_BYTES = 40
_ENTRY_BYTES = 300
"""Of one token's log-probabilities; each alternative costs _TOP_BYTES more."""
_TOP_BYTES = 72


class SlowReaderError(QuireWorkerError):
    """More of an answer waited to be taken than may."""


class Mail(NamedTuple):
    """An item and when it arrived, in seconds of the engine client's clock."""

    arrived_s: float
    item: Item


class Mailroom:
    """What all mailboxes hold together."""

    def __init__(self, most_bytes: int = DEFAULT_UNREAD_BYTES) -> None:
        """`most_bytes`: all of them; one a sixteenth of it. What a mailbox holds is an estimate, somewhat too high."""
        self._most_bytes = most_bytes
        self._most_of_one_bytes = most_bytes // _SHARE_OF_ONE
        self._boxes: dict[Mailbox, int] = {}
        """Those that hold something."""
        self.num_bytes = 0

    def add(self, box: "Mailbox", num_bytes: int) -> "Mailbox | None":
        """`box` holds so many bytes more. Returns the mailbox that is to be cut for that, if any: `box` itself, or the fullest of all."""
        self.num_bytes += num_bytes
        held = self._boxes[box] = self._boxes.get(box, 0) + num_bytes
        if held > self._most_of_one_bytes and box.has_waited:
            return box
        if self.num_bytes <= self._most_bytes:
            return None
        fullest = max(self._boxes, key=self._boxes.__getitem__)
        return fullest if fullest.has_waited else None

    def empty(self, box: "Mailbox") -> None:
        """`box` holds nothing any more."""
        self.num_bytes -= self._boxes.pop(box, 0)


class Mailbox:
    """Filled by the engine client, emptied by one reader, both on the event loop."""

    def __init__(self, room: Mailroom | None = None) -> None:
        self._room = room or Mailroom()
        self._mails: list[Mail] = []
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def has_waited(self) -> bool:
        """Whether its reader could have taken something: for what one message of the engine brought there was no time yet."""
        return bool(self._mails) and self._mails[0].arrived_s < self._mails[-1].arrived_s

    def put(self, mail: Mail) -> "Mailbox | None":
        """Returns the mailbox that is to be cut because all hold too much now, if any."""
        self._mails.append(mail)
        self._wake()
        return self._room.add(self, size_of(mail.item))

    def fail(self, error: Exception) -> None:
        """Nothing more will come: `take` raises `error` once what came before is taken."""
        self._failure = error
        self._wake()

    def cut(self) -> None:
        """Its reader is too slow: what it holds is dropped, and `take` raises SlowReaderError."""
        self._mails = []
        self._room.empty(self)
        self.fail(SlowReaderError("more of an answer waited to be taken than may"))

    def close(self) -> None:
        """Nobody takes any more."""
        self._room.empty(self)

    async def take(self) -> list[Mail]:
        """Everything that has arrived, at least one mail. Waits; raises what `fail` was given."""
        while not self._mails:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        mails, self._mails = self._mails, []
        self._room.empty(self)
        return mails

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def size_of(item: Item) -> int:
    """Bytes of memory that an item takes, about: measured with tracemalloc on 64-bit CPython 3.11."""
    if isinstance(item, Rejected):
        return _MAIL_BYTES
    size = _MAIL_BYTES + _TOKEN_BYTES * len(item.token_ids)
    if item.logprobs is not None:
        size += sum(_ENTRY_BYTES + _TOP_BYTES * len(entry.top_ids) for entry in item.logprobs)
    for part in item.prompt_logprobs or ():
        size += len(part.logprobs) + len(part.ranks) + len(part.top_ids) + len(part.top_logprobs)
    return size + len(item.embedding or b"")
