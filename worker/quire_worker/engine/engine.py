"""One step of the engine: keep `depth` plans in flight, commit the oldest.

Knows the scheduler and a runner; no sockets, threads or clocks.

    depth 1    plan 0, launch 0, commit 0, plan 1, launch 1, commit 1, ...
    depth 2    plan 0, launch 0, plan 1, launch 1, commit 0, plan 2, launch 2, commit 1, ...   the host plans while the device computes

A launched plan is sampled at once, unless a row's mask depends on tokens that are still on their way: then when those are committed, while
the device computes what was launched. Nothing is launched behind a plan that waits so.
"""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from quire_worker.dormant import Dormant
from quire_worker.embedding import Embed
from quire_worker.engine.constraints import Constraints
from quire_worker.engine.quarantine import Quarantine
from quire_worker.errors import DeviceError, StepMemoryError
from quire_worker.plan import Handle, Runner, StepPlan
from quire_worker.request import ChoiceOutput, Submit
from quire_worker.scheduling.choice import Choice
from quire_worker.scheduling.intake import Rejection
from quire_worker.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Engine:
    """Scheduler and runner, stepped by one thread."""

    def __init__(self, scheduler: Scheduler, runner: Runner, *, depth: int = 1) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._depth = depth
        self._in_flight: deque[tuple[StepPlan, Handle]] = deque()
        self._constraints = Constraints(scheduler)
        self._unsampled: tuple[StepPlan, Handle] | None = None
        """The last plan in flight, if it waits for masks."""
        self._quarantine = Quarantine(scheduler)
        self.last_step_tokens = 0
        """Tokens computed by the step that the last call of step() committed; 0 if it committed none."""
        self.last_step_rows = 0
        """Rows of that step."""

    @property
    def dormant(self) -> Dormant | None:
        """What computes, if it can sleep."""
        return self._runner if isinstance(self._runner, Dormant) else None

    def add(self, message: Submit | Embed) -> Rejection | None:
        """Queue a request, or say why not."""
        if isinstance(message, Submit):
            return self.scheduler.add(message)
        return Rejection("invalid", "This model generates text and makes no embeddings.")

    def step(self) -> list[ChoiceOutput]:
        """Launch until `depth` plans are in flight or there is nothing to launch, then commit the oldest. Returns its tokens,
        and what ran out of time.

        What a step raises fails only the request that causes it (see quarantine.py), except DeviceError, which passes through. What found
        no memory is done again in smaller steps."""
        self.last_step_tokens = 0
        outputs = self.scheduler.expire() + self.scheduler.end_complete()
        try:
            self._launch_ahead()
            if self._in_flight:
                outputs += self._commit_oldest()
                self._sample_waiting()
            else:
                self._quarantine.on_idle()
        except _StepFailedError as failure:
            self._in_flight.clear()
            self._unsampled = None
            outputs += self._recover(failure.plan, failure.cause)
        return outputs + self._constraints.take_outputs()

    def _recover(self, plan: StepPlan, cause: Exception) -> list[ChoiceOutput]:
        """`plan` raised `cause`; nothing is in flight any more. Returns the output of whoever failed by it."""
        if isinstance(cause, StepMemoryError) and self.scheduler.budget.on_no_memory(sum(plan.num_tokens)):
            self.scheduler.abandon_steps(plan)
            log.warning("steps become smaller, memory ran out max_tokens=%d", self.scheduler.budget.num_tokens)
            return []
        return self._quarantine.on_failure(plan, cause)

    def _launch_ahead(self) -> None:
        while len(self._in_flight) < self._depth and self._unsampled is None:
            plan = self.scheduler.plan_step()
            if not plan.rows:
                return
            handle = _attempt(plan, partial(self._runner.launch, plan))
            self._in_flight.append((plan, handle))
            self._unsampled = (plan, handle)
            self._sample_waiting()

    def _commit_oldest(self) -> list[ChoiceOutput]:
        plan, handle = self._in_flight[0]
        result = _attempt(plan, handle.result)
        self._in_flight.popleft()
        outputs = self.scheduler.commit(plan, result)
        self.last_step_tokens = sum(plan.num_tokens)
        self.last_step_rows = len(plan.rows)
        self._quarantine.on_commit(outputs)
        return outputs

    def _sample_waiting(self) -> None:
        """Sample the last plan launched if that has not been done and its masks can be made."""
        if self._unsampled is None:
            return
        plan, handle = self._unsampled
        constrained = self.scheduler.constrained(plan)
        if constrained and not self._constraints.are_ready(constrained):
            return
        _attempt(plan, partial(self._sample, handle, constrained))
        self._unsampled = None

    def _sample(self, handle: Handle, constrained: list[tuple[int, Choice]]) -> None:
        masks = self._constraints.masks(constrained) if constrained else None
        self._runner.sample(handle, masks)


class _StepFailedError(Exception):
    """A plan raised."""

    def __init__(self, plan: StepPlan, cause: Exception) -> None:
        super().__init__(cause)
        self.plan = plan
        self.cause = cause


def _attempt(plan: StepPlan, action: Callable[[], _T]) -> _T:
    """Do `action` for `plan`; what it raises is the plan's failure."""
    try:
        return action()
    except DeviceError:
        raise
    except Exception as error:
        log.exception("step failed step_id=%d rows=%d tokens=%d", plan.step_id, len(plan.rows), sum(plan.num_tokens))
        raise _StepFailedError(plan, error) from error
