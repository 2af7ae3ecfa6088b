"""Where requests with a grammar wait until it is compiled; the scheduler sees them when they can run.

They count as waiting in the queue: its bounds hold for them, and their time runs. Knows requests and the scheduler's door; the compiler
knows grammars. Owned by the loop.
"""

import itertools
import time
from collections.abc import Callable

import msgspec

from quire_worker.engine.messages import Abort, Submit
from quire_worker.grammar.compiler import GrammarCompiler, GrammarCounters, Outcome, Refused, digest_of
from quire_worker.request import ChoiceOutput
from quire_worker.scheduling.deadlines import DEADLINE, QUEUE_TIMEOUT, Deadlines
from quire_worker.scheduling.intake import Rejection, num_tokens_of
from quire_worker.scheduling.scheduler import Scheduler

Reject = Callable[[Submit, Rejection], None]


class _Waiting:
    """A request whose grammar is being compiled."""

    def __init__(self, submit: Submit, digest: bytes, arrival: int, arrived_s: float) -> None:
        self.submit = submit
        self.digest = digest
        self.arrival = arrival
        self.arrived_s = arrived_s
        self.aborted: set[int] = set()
        """Choices that nobody wants any more."""


class GrammarDesk:
    """Takes requests with a grammar, and hands them to the scheduler or refuses them."""

    def __init__(
        self,
        scheduler: Scheduler,
        compiler: GrammarCompiler | None,
        why_not: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a compiler every grammar is refused; `why_not` says why. `clock` gives seconds; only differences count."""
        self._scheduler = scheduler
        self._compiler = compiler
        self._why_not = why_not
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}
        self._arrivals = itertools.count()
        self._deadlines = Deadlines()
        self.counters = GrammarCounters() if compiler is None else compiler.counters

    @property
    def wake_fd(self) -> int | None:
        """Becomes readable when `collect` has something to do."""
        return None if self._compiler is None else self._compiler.wake_fd

    @property
    def num_waiting(self) -> int:
        """Choices whose grammar is being compiled."""
        return sum(waiting.submit.n - len(waiting.aborted) for waiting in self._waiting.values())

    @property
    def num_tokens(self) -> int:
        """Tokens that the requests here bring."""
        return sum(num_tokens_of(waiting.submit) for waiting in self._waiting.values())

    @property
    def wait_s(self) -> float:
        """Seconds until `expire` may have something to do; infinite if nothing runs out of time."""
        return max(0.0, self._deadlines.next_s - self._clock())

    def take(self, submit: Submit) -> Rejection | None:
        """A request with a grammar: it goes to the scheduler now or later, or is refused."""
        assert submit.grammar is not None
        if self._compiler is None:
            return self._refused(self._why_not)
        if submit.request_id in self._waiting:
            return Rejection("invalid", f"request_id: {submit.request_id} is already running")
        digest = digest_of(submit.grammar)
        outcome = self._compiler.find(digest)
        if outcome is not None:
            self.counters.num_hits += 1
            return self._admit(submit, outcome)
        rejection = self._scheduler.refusal_of(submit, num_ahead=self.num_waiting, num_tokens_ahead=self.num_tokens)
        if rejection is not None:
            return rejection
        if not self._compiler.start(digest, submit.grammar):
            return Rejection("queue_full", "too many grammars wait to be compiled; try again later")
        self._begin_to_wait(submit, digest)
        return None

    def abort(self, message: Abort) -> None:
        """Unknown ids are ignored: the request may be with the scheduler."""
        waiting = self._waiting.get(message.request_id)
        if waiting is None:
            return
        if message.choice is not None:
            waiting.aborted.add(message.choice)
        if message.choice is None or len(waiting.aborted) == waiting.submit.n:
            del self._waiting[message.request_id]
            if self._compiler is not None and all(other.digest != waiting.digest for other in self._waiting.values()):
                self._compiler.forget(waiting.digest)

    def collect(self, reject: Reject) -> None:
        """Hand on the requests whose grammars became ready."""
        if self._compiler is None:
            return
        for digest, outcome in self._compiler.collect():
            ready = [waiting for waiting in self._waiting.values() if waiting.digest == digest]
            for waiting in ready:
                self._hand_on(waiting, outcome, reject)

    def expire(self) -> list[ChoiceOutput]:
        """End the requests whose time is over before their grammar is ready."""
        if self._deadlines.next_s > (now_s := self._clock()):
            return []
        ended = []
        for kind, request_id, arrival in self._deadlines.take_due(now_s):
            waiting = self._waiting.get(request_id)
            if waiting is None or waiting.arrival != arrival:
                continue
            del self._waiting[request_id]
            ended += [
                ChoiceOutput(request_id=request_id, choice=choice, token_ids=[], finish_reason=kind, error="waiting")
                for choice in range(waiting.submit.n)
                if choice not in waiting.aborted
            ]
        self._deadlines.forget_ended(self._waiting)
        return ended

    def close(self) -> None:
        """End what is being compiled."""
        if self._compiler is not None:
            self._compiler.close()

    def _begin_to_wait(self, submit: Submit, digest: bytes) -> None:
        arrival, now_s = next(self._arrivals), self._clock()
        self._waiting[submit.request_id] = _Waiting(submit, digest, arrival, now_s)
        for kind, timeout_s in ((QUEUE_TIMEOUT, submit.queue_timeout_s), (DEADLINE, submit.timeout_s)):
            if timeout_s is not None:
                self._deadlines.add(kind, now_s + timeout_s, submit.request_id, arrival)

    def _hand_on(self, waiting: _Waiting, outcome: Outcome, reject: Reject) -> None:
        submit = waiting.submit
        del self._waiting[submit.request_id]
        rejection = self._admit(_later(submit, self._clock() - waiting.arrived_s), outcome)
        if rejection is not None:
            reject(submit, rejection)
            return
        for choice in waiting.aborted:
            self._scheduler.abort(submit.request_id, choice)

    def _admit(self, submit: Submit, outcome: Outcome) -> Rejection | None:
        if isinstance(outcome, Refused):
            return self._refused(outcome.message)
        rejection = self._scheduler.add(submit)
        if rejection is None:
            matchers = [outcome.new_matcher(submit.output_token_ids) for _ in range(submit.n)]
            self._scheduler.constrain(submit.request_id, matchers)
        return rejection

    def _refused(self, message: str) -> Rejection:
        self.counters.num_refused += 1
        return Rejection("grammar", message)


def _later(submit: Submit, spent_s: float) -> Submit:
    """The request with what is left of its time."""
    return msgspec.structs.replace(
        submit,
        timeout_s=None if submit.timeout_s is None else max(0.0, submit.timeout_s - spent_s),
        queue_timeout_s=None if submit.queue_timeout_s is None else max(0.0, submit.queue_timeout_s - spent_s),
    )
