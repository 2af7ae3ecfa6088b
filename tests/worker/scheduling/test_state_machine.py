"""Block pool and scheduler under any order of events: nothing leaks, nothing is freed twice, tokens are right."""

from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from quire_worker.plan import StepPlan, StepResult
from quire_worker.scheduling.limits import ANY_ROWS
from quire_worker.scheduling.policy import FCFS, POLICIES
from quire_worker.scheduling.prefill_share import UNLIMITED

PREFIX = [5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]


def machine_of(rig: Any, policy: str) -> type[RuleBasedStateMachine]:
    """The machine over the tests' rig."""

    class EngineMachine(RuleBasedStateMachine):
        """Plans are launched and committed separately, so up to three are in flight."""

        @initialize(
            blocks=st.integers(8, 30),
            block_size=st.sampled_from([1, 2, 4]),
            budget=st.sampled_from([4, 9, 64]),
            rows=st.integers(1, 4),
            caching=st.booleans(),
            windows=st.sampled_from([(None,), (3,), (None, 5), (2, 7)]),
            policy=st.just(policy),
            aging_s=st.sampled_from([0.0, 1.0, 1000.0]),
            prefill_tokens=st.sampled_from([1, 3, UNLIMITED]),
            partial=st.integers(1, 3),
            rows_per_request=st.sampled_from([1, 2, ANY_ROWS]),
        )
        def build(self, **shape: Any) -> None:
            self.shape = shape
            self.r = rig(**shape, queue=6, max_model_len=40)
            self.in_flight: deque[tuple[StepPlan, StepResult]] = deque()
            self.submitted: dict[str, dict[str, Any]] = {}
            self.outputs: dict[tuple[str, int], list[int]] = {}
            self.ended: set[tuple[str, int]] = set()
            self.aborted: set[tuple[str, int]] = set()

        @rule(
            shared=st.integers(0, len(PREFIX)),
            own=st.lists(st.integers(0, 9), min_size=1, max_size=9),
            n=st.integers(1, 3),
            max_tokens=st.integers(1, 9),
            ending=st.sampled_from([(), (1, 2, 3), tuple(range(20))]),
            priority=st.integers(-3, 3),
            timeouts=st.fixed_dictionaries(
                {name: st.none() | st.floats(0, 3) for name in ("timeout_s", "queue_timeout_s")}
            ),
        )
        def add(
            self,
            shared: int,
            own: list[int],
            n: int,
            max_tokens: int,
            ending: tuple[int, ...],
            priority: int,
            timeouts: dict[str, float | None],
        ) -> None:
            name = f"r{len(self.submitted)}"
            request = {
                "prompt": PREFIX[:shared] + own,
                "n": n,
                "max_tokens": max_tokens,
                "temperature": 1.0,
                "seed": len(self.submitted),
                "stop_token_ids": ending,
            }
            if self.r.submit(name, **request, priority=priority, **timeouts) is None:
                self.submitted[name] = request

        @rule(seconds=st.sampled_from([0.05, 1.0]))
        def pass_time(self, seconds: float) -> None:
            self.r.time_s += seconds
            for output in self.r.scheduler.expire():
                assert output.token_ids == []
                self.aborted.add((output.request_id, output.choice))

        @precondition(lambda self: len(self.in_flight) < 3)
        @rule()
        def launch(self) -> None:
            plan, result = self.r.launch()
            if plan.rows:
                self.in_flight.append((plan, result))

        @precondition(lambda self: self.in_flight)
        @rule()
        def commit(self) -> None:
            for output in self.r.scheduler.commit(*self.in_flight.popleft()):
                key = (output.request_id, output.choice)
                assert key not in self.ended | self.aborted
                self.outputs.setdefault(key, []).extend(output.token_ids)
                if output.finish_reason is not None:
                    self.ended.add(key)

        @precondition(lambda self: self.submitted)
        @rule(data=st.data())
        def abort(self, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(sorted(self.submitted)))
            choice = data.draw(st.none() | st.integers(0, self.submitted[name]["n"] - 1))
            self.r.scheduler.abort(name, choice)
            indices = range(self.submitted[name]["n"]) if choice is None else [choice]
            self.aborted |= {(name, index) for index in indices} - self.ended

        @precondition(lambda self: self.r.scheduler.num_running)
        @rule()
        def preempt(self) -> None:
            self.r.scheduler._planner.preempt(self.r.scheduler._batch.running[-1], "test")

        @precondition(lambda self: self.in_flight)
        @rule(newest=st.booleans())
        def fail_a_step(self, newest: bool) -> None:
            self.r.scheduler.abandon_steps(self.in_flight[-1 if newest else 0][0])
            self.in_flight.clear()

        @invariant()
        def everything_adds_up(self) -> None:
            if hasattr(self, "r"):
                self.r.scheduler.check()

        def teardown(self) -> None:
            if not hasattr(self, "r"):
                return
            steps = 0
            while self.r.scheduler.has_work:
                self.pass_time(0.05)
                self.launch()
                if self.in_flight:
                    self.commit()
                self.r.scheduler.check()
                steps += 1
                assert steps < 2000, "the engine does not come to an end"
            assert self.r.num_used_blocks == 0
            self.check_tokens()

        def check_tokens(self) -> None:
            """Against an engine that shares nothing and is never short of anything."""
            oracle = rig(
                **{**self.shape, "blocks": 2000, "rows": 64, "caching": False, "policy": FCFS},
                max_model_len=self.r.info.max_model_len,
            )
            for name, request in self.submitted.items():
                oracle.submit(name, **request)
            expected = oracle.run()
            for name, request in self.submitted.items():
                for index in range(request["n"]):
                    key = (name, index)
                    got = self.outputs.get(key, [])
                    assert got == expected[key][: len(got)]
                    assert key in self.aborted or (key in self.ended and got == expected[key])

    return EngineMachine


@pytest.mark.parametrize("policy", POLICIES)
def test_no_order_of_events_leaks_blocks_or_changes_tokens(rig: Any, policy: str) -> None:
    run_state_machine_as_test(
        machine_of(rig, policy),
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
