"""After a step raised: find the request that causes it, and let the others finish.

The suspects are the choices of the plan that raised. All plans in flight are forgotten and everything goes back to the queue;
then suspects run in trials, half of them at a time. A trial that raises is halved again; a choice that raises
alone is guilty and ends with finish reason "error". A choice is cleared when it brings a token. Choices outside the trial wait.

An engine in which one request after the other fails alone, and none brings a token, is broken itself: then it ends.

Knows the scheduler; not the runner or what the errors mean.
"""

import logging

from quire_worker.errors import DeviceError
from quire_worker.plan import StepPlan
from quire_worker.request import ChoiceOutput
from quire_worker.scheduling.choice import Choice, Status
from quire_worker.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)
_MAX_GUILTY_IN_A_ROW = 20


class Quarantine:
    """Trials still to be made. Idle (and free of cost) unless a step raised."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._trials: list[list[Choice]] = []
        """Last is next, or under way."""
        self._num_guilty = 0
        """Choices that failed alone since a step last brought a token."""

    def on_failure(self, plan: StepPlan, error: Exception) -> list[ChoiceOutput]:
        """`plan` raised `error`. Returns the failed choice's output, if this tells which one it was.

        DeviceError when so many failed alone, with no success in between, that it cannot be their fault."""
        suspects = self._scheduler.abandon_steps(plan)
        outputs = []
        if len(suspects) == 1:
            self._num_guilty += 1
            if self._num_guilty >= _MAX_GUILTY_IN_A_ROW:
                raise DeviceError(f"{self._num_guilty} requests in a row failed and none succeeded: {_describe(error)}")
            log.error("request failed request_id=%s choice=%d", suspects[0].request_id, suspects[0].index)
            outputs.append(self._scheduler.fail(suspects[0], f"the engine failed on this request: {_describe(error)}"))
        else:
            self._divide(suspects)
        self._next_trial()
        return outputs

    def on_idle(self) -> None:
        """Nothing can be planned: the choices on trial may all have been aborted."""
        if self._trials:
            self._next_trial()

    def _divide(self, suspects: list[Choice]) -> None:
        """Choices cleared before are suspected last. A single suspect that ran beside others gets a trial alone."""
        on_trial = self._trials.pop() if self._trials else []
        inside = [choice for choice in suspects if choice in on_trial]
        absent = [choice for choice in on_trial if choice not in inside]
        narrowed = inside or suspects
        half = len(narrowed) // 2
        self._trials += [group for group in (absent, narrowed[half:], narrowed[:half]) if group]

    def on_commit(self, outputs: list[ChoiceOutput]) -> None:
        """A step went well: choices that brought a token are cleared."""
        if outputs:
            self._num_guilty = 0
        if not self._trials:
            return
        cleared = {(output.request_id, output.choice) for output in outputs}
        self._trials[-1] = [c for c in self._trials[-1] if (c.request_id, c.index) not in cleared]
        self._next_trial()

    def _next_trial(self) -> None:
        """Let the next choices run that are still under suspicion; without any, everybody."""
        while self._trials:
            self._trials[-1] = [c for c in self._trials[-1] if c.status is not Status.FINISHED]
            if self._trials[-1]:
                return self._scheduler.queue.restrict(frozenset(self._trials[-1]))
            self._trials.pop()
        return self._scheduler.queue.restrict(None)


def _describe(error: Exception) -> str:
    """Type and first line only: a message must not carry tokens or tensors to the client."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
