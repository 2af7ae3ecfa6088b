"""A step that finds no memory: the next ones are smaller, and only what does not fit into the smallest fails."""

from typing import Any

import pytest

from quire_worker.errors import StepMemoryError
from quire_worker.plan import Handle, Runner, StepPlan, TokenMasks


class SmallMemory:
    """Finds no memory for a step of more than `max_tokens` tokens."""

    max_tokens = 20

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.num_failures = 0

    def launch(self, plan: StepPlan) -> Handle:
        if sum(plan.num_tokens) > self.max_tokens:
            self.num_failures += 1
            raise StepMemoryError("no memory for a step")
        return self._runner.launch(plan)

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        self._runner.sample(handle, masks)

    def close(self) -> None:
        self._runner.close()


class TinyMemory(SmallMemory):
    """Not even enough for one token of each row."""

    max_tokens = 5


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_long_prompt_is_computed_in_smaller_steps_and_fails_nobody(rig: Any, depth: int) -> None:
    healthy, r = rig(depth=depth), rig(depth=depth, wrap=SmallMemory)
    for each in (healthy, r):
        each.submit("short", 10)
        each.submit("long", 60)

    tokens = r.run()

    assert tokens == healthy.run()
    assert {end.finish_reason for end in r.ends.values()} == {"length"}
    assert r.runner.num_failures == 2
    assert r.scheduler.budget.num_tokens == 16


def test_what_does_not_fit_into_the_smallest_step_fails_alone(rig: Any) -> None:
    r = rig(wrap=TinyMemory)
    r.submit("short", 4)
    r.submit("long", 60)
    r.submit("also short", 3)

    r.run()

    assert {name: end.finish_reason for (name, _), end in r.ends.items()} == {
        "short": "length",
        "long": "error",
        "also short": "length",
    }
    assert r.num_used_blocks == 0
