"""Requests for embeddings: which of their inputs are computed next.

A batch takes one input of each request in turn until its tokens or its rows are used up, and the next batch goes on where this one stopped.
So a short request does not wait for long ones to end, whatever lies in the queue, and nothing starves: an input that does not fit comes
first in the next batch. An input is computed whole.

A request's time runs from its arrival; what of it lies in no batch when that is over is never computed.

Knows requests and limits; not tensors or sockets. The surface is the scheduler's, as far as the engine's loop looks at it.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quire_worker.embedding import Embed, EmbedInput
from quire_worker.kv.events import CacheEvent
from quire_worker.request import ChoiceOutput
from quire_worker.scheduling.counters import Counters
from quire_worker.scheduling.deadlines import DEADLINE, QUEUE_TIMEOUT, Deadlines
from quire_worker.scheduling.intake import Rejection
from quire_worker.scheduling.limits import SchedulerLimits


class _Open:
    """A request, and how far it has come."""

    __slots__ = ("arrival", "arrived_s", "message", "next")

    def __init__(self, message: Embed, arrival: int, arrived_s: float) -> None:
        self.message = message
        self.arrival = arrival
        self.arrived_s = arrived_s
        self.next = 0
        """Inputs before this one were handed out."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One input of a batch."""

    request_id: str
    index: int
    """Of the input in its request."""
    input: EmbedInput


@dataclass(frozen=True, slots=True)
class _Choice:
    """A batch, before anything is changed."""

    picked: list[tuple[_Open, int]]
    num_tokens: int
    ring: "deque[_Open]"
    """Whose turn comes next."""
    ends: dict[str, int]
    """How far each request of the batch then is."""


class EmbedQueue:
    """Open requests, in the order of their turns."""

    def __init__(self, limits: SchedulerLimits, num_blocks: int, clock: Callable[[], float]) -> None:
        """`num_blocks`: what is told of memory, all of it always free."""
        self._limits = limits
        self._clock = clock
        self._ring: deque[_Open] = deque()
        self._num_tokens = 0
        self._arrivals = itertools.count()
        self._deadlines = Deadlines()
        self.num_free_blocks = num_blocks
        self.counters = Counters()

    def add(self, message: Embed) -> Rejection | None:
        """Queue a request, or say why not; then nothing changed."""
        if self._find(message.request_id) is not None:
            return Rejection("invalid", f"request_id: {message.request_id} is already running")
        rejection = _malformed(message, self._limits) or self._queue_full(message)
        if rejection is None:
            self._append(_Open(message, next(self._arrivals), self._clock()))
        return rejection

    def _append(self, opened: _Open) -> None:
        message = opened.message
        self._ring.append(opened)
        self._num_tokens += _num_tokens(message.inputs)
        for kind, timeout_s in ((QUEUE_TIMEOUT, message.queue_timeout_s), (DEADLINE, message.timeout_s)):
            if timeout_s is not None:
                self._deadlines.add(kind, opened.arrived_s + timeout_s, message.request_id, opened.arrival)

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """Forget a request. Single inputs are not dropped: nobody asks for that."""
        del choice
        opened = self._find(request_id)
        if opened is not None:
            self._remove(opened)

    def expire(self) -> list[ChoiceOutput]:
        """End what is out of time: requests not in a batch when their queue timeout passes, and all whose deadline does."""
        if self._deadlines.next_s > (now_s := self._clock()):
            return []
        ended = []
        for kind, request_id, arrival in self._deadlines.take_due(now_s):
            opened = self._find(request_id)
            if opened is None or opened.arrival != arrival or (kind == QUEUE_TIMEOUT and opened.next):
                continue
            self._remove(opened)
            state = "running" if opened.next else "waiting"
            ended += [
                ChoiceOutput(request_id=request_id, choice=index, token_ids=[], finish_reason=kind, error=state)
                for index in range(opened.next, opened.message.n)
            ]
        self._deadlines.forget_ended({opened.message.request_id for opened in self._ring})
        return ended

    def _find(self, request_id: str) -> _Open | None:
        return next((opened for opened in self._ring if opened.message.request_id == request_id), None)

    def _remove(self, opened: _Open) -> None:
        self._num_tokens -= _num_tokens(opened.message.inputs[opened.next :])
        self._ring.remove(opened)

    @property
    def has_work(self) -> bool:
        return bool(self._ring)

    @property
    def num_running(self) -> int:
        """Requests in the batch that comes next."""
        return len(self._choose().ends)

    @property
    def num_waiting(self) -> int:
        """The others."""
        return len(self._ring) - self.num_running

    @property
    def num_deferred(self) -> int:
        """Nothing waits for anything but its turn."""
        return 0

    @property
    def num_uncached_tokens(self) -> int:
        """Tokens still to be computed."""
        return self._num_tokens

    def drop_cache(self) -> None:
        """Nothing is cached."""

    def take_cache_events(self) -> list[CacheEvent]:
        """None ever: nothing is cached."""
        return []

    def next_batch(self) -> list[BatchItem]:
        """At least one input if there is work, else none. A request leaves with its last input."""
        choice = self._choose()
        now_s = self._clock()
        batch = []
        for opened, index in choice.picked:
            if index == 0:
                num_tokens = _num_tokens(opened.message.inputs)
                self.counters.on_first_admission(num_tokens, 0, now_s - opened.arrived_s)
            batch.append(BatchItem(opened.message.request_id, index, _input(opened.message, index)))
            opened.next = index + 1
        self._ring = choice.ring
        self._num_tokens -= choice.num_tokens
        return batch

    def _choose(self) -> _Choice:
        """One input of each request in turn, as many as fit; the first one always does."""
        ring = deque(self._ring)
        picked: list[tuple[_Open, int]] = []
        ends: dict[str, int] = {}
        num_tokens = 0
        while ring and len(picked) < self._limits.max_num_seqs:
            opened = ring[0]
            message = opened.message
            index = ends.get(message.request_id, opened.next)
            length = len(message.inputs[index])
            if picked and num_tokens + length > self._limits.max_num_batched_tokens:
                break
            ring.popleft()
            picked.append((opened, index))
            num_tokens += length
            ends[message.request_id] = index + 1
            if index + 1 < message.n:
                ring.append(opened)
        return _Choice(picked, num_tokens, ring, ends)

    def _queue_full(self, message: Embed) -> Rejection | None:
        limits = self._limits
        if len(self._ring) >= limits.max_num_queued_reqs:
            return Rejection(
                "queue_full", f"{len(self._ring)} requests are waiting, which is the most; try again later"
            )
        if self._ring and self._num_tokens + _num_tokens(message.inputs) > limits.max_num_queued_tokens:
            return Rejection(
                "queue_full",
                f"{self._num_tokens} tokens are waiting, at most {limits.max_num_queued_tokens} may; try again later",
            )
        return None


def _malformed(message: Embed, limits: SchedulerLimits) -> Rejection | None:
    if not message.inputs or not all(message.inputs):
        return Rejection("invalid", "input: each needs at least one token")
    longest = max(map(len, message.inputs))
    if longest > limits.max_model_len:
        return Rejection(
            "too_long", f"input: one has {longest} tokens, but this model takes at most {limits.max_model_len}"
        )
    if min(map(min, message.inputs)) < 0 or max(map(max, message.inputs)) >= limits.vocab_size:
        return Rejection("invalid", f"input: token ids must lie in [0, {limits.vocab_size})")
    if message.second_starts and len(message.second_starts) != message.n:
        return Rejection("invalid", "second_starts: must be as many as inputs")
    return None


def _num_tokens(inputs: Sequence[Sequence[int]]) -> int:
    return sum(map(len, inputs))


def _input(message: Embed, index: int) -> EmbedInput:
    return EmbedInput(
        token_ids=message.inputs[index],
        second_start=message.second_starts[index] if message.second_starts else None,
        dimensions=message.dimensions,
        normalises=message.normalises,
    )
