"""A step that raises: the guilty request fails alone, the others finish with the same tokens."""

from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from quire_worker.errors import DeviceError
from quire_worker.plan import Handle, Runner, StepPlan, StepResult, TokenMasks

POISON = 63


class FailingHandle:
    """A launched step that fails when it is waited for."""

    def __init__(self, plan: StepPlan, fail: Callable[[], NoReturn]) -> None:
        self.plan = plan
        self._fail = fail

    def result(self) -> StepResult:
        self._fail()


class PoisonRunner:
    """Raises in every step that holds a row whose tokens hold POISON at or after `position`."""

    position = 0

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._poisoned: set[int] = set()
        self.num_failures = 0

    def launch(self, plan: StepPlan) -> Handle:
        self._poisoned -= set(plan.freed_rows)
        self._poisoned |= {new.row for new in plan.new_rows if POISON in new.token_ids[self.position :]}
        if self._poisoned & set(plan.rows):
            return self.spoil(plan)
        return self._runner.launch(plan)

    def spoil(self, plan: StepPlan) -> Handle:
        self.fail()

    def fail(self) -> NoReturn:
        self.num_failures += 1
        raise RuntimeError("a bad token\nwith details")

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        if not isinstance(handle, FailingHandle):
            self._runner.sample(handle, masks)

    def close(self) -> None:
        self._runner.close()


class LatePoisonRunner(PoisonRunner):
    """Raises only when the result is waited for."""

    def spoil(self, plan: StepPlan) -> Handle:
        return FailingHandle(plan, self.fail)


class BrokenDevice(PoisonRunner):
    """The device does not come back."""

    def spoil(self, plan: StepPlan) -> Handle:
        raise DeviceError("the device is lost; restart the pod")


def clean(name: str, num_tokens: int) -> list[int]:
    return [(sum(name.encode()) + 5 * i) % 60 for i in range(num_tokens)]


def submit_all(r: Any, names: str, guilty: str = "") -> None:
    for name in names:
        prompt = clean(name, 9)
        r.submit(name, [*prompt, POISON] if name in guilty else prompt, max_tokens=6, stop_token_ids=(POISON,))


@pytest.mark.parametrize("runner", [PoisonRunner, LatePoisonRunner])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("guilty", ["d", "a", "ch"])
def test_only_the_guilty_requests_fail_and_the_others_bring_their_tokens(
    rig: Any, runner: type[PoisonRunner], depth: int, guilty: str
) -> None:
    healthy = rig()
    submit_all(healthy, "abcdefgh")
    r = rig(depth=depth, wrap=runner)
    submit_all(r, "abcdefgh", guilty)

    r.run()

    assert {key[0] for key, end in r.ends.items() if end.finish_reason == "error"} == set(guilty)
    expected = healthy.run()
    for name in set("abcdefgh") - set(guilty):
        assert r.tokens[name, 0] == expected[name, 0]
    assert r.num_used_blocks == 0
    assert r.runner.num_failures <= 12


def test_the_error_names_type_and_first_line_only(rig: Any) -> None:
    r = rig(wrap=PoisonRunner)
    submit_all(r, "a", guilty="a")

    r.run()

    assert r.ends["a", 0].error == "the engine failed on this request: RuntimeError: a bad token"
    assert r.ends["a", 0].token_ids == []


def test_a_request_that_turns_bad_while_others_run_is_found(rig: Any) -> None:
    r = rig(wrap=PoisonRunner)
    submit_all(r, "abc")
    r.step()
    r.step()
    submit_all(r, "d", guilty="d")

    r.run()

    assert {key[0] for key, end in r.ends.items() if end.finish_reason == "error"} == {"d"}
    assert all(len(r.tokens[name, 0]) > 1 for name in "abc")


def test_the_guilty_leader_fails_and_so_do_its_siblings_but_nobody_else(rig: Any) -> None:
    r = rig(wrap=PoisonRunner)
    r.submit("bad", [*clean("bad", 9), POISON], n=3)
    submit_all(r, "a")

    r.run()

    assert {key for key, end in r.ends.items() if end.finish_reason == "error"} == {("bad", 0), ("bad", 1), ("bad", 2)}
    assert r.ends["a", 0].finish_reason in ("stop", "length")


def test_a_request_that_arrives_during_a_trial_waits_for_its_end(rig: Any) -> None:
    r = rig(wrap=PoisonRunner)
    submit_all(r, "abcd", guilty="b")
    r.step()
    submit_all(r, "e")

    served = {output.request_id for output in r.step()}
    r.run()

    assert "e" not in served
    assert r.ends["e", 0].finish_reason in ("stop", "length")


def test_a_trial_whose_choices_are_aborted_ends(rig: Any) -> None:
    r = rig(wrap=PoisonRunner)
    submit_all(r, "abcd", guilty="b")
    r.step()

    for name in "ab":
        r.scheduler.abort(name)
    r.run()

    assert {key[0] for key in r.ends} == {"c", "d"}


def test_a_device_error_is_not_retried(rig: Any) -> None:
    r = rig(wrap=BrokenDevice)
    submit_all(r, "ab", guilty="b")

    with pytest.raises(DeviceError, match="restart the pod"):
        r.run()


def test_an_engine_that_fails_every_request_ends(rig: Any) -> None:
    r = rig(wrap=PoisonRunner, rows=8)
    names = "abcdefghijklmnopqrstuvwxyz"
    submit_all(r, names, guilty=names)

    with pytest.raises(DeviceError, match="20 requests in a row failed and none succeeded: RuntimeError: a bad token"):
        r.run()


def test_many_guilty_requests_beside_good_ones_do_not_end_the_engine(rig: Any) -> None:
    r = rig(wrap=PoisonRunner, rows=4)
    names = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    guilty = "".join(name for index, name in enumerate(names) if index % 4)
    submit_all(r, names, guilty=guilty)

    r.run()

    reasons = {name: r.ends[name, 0].finish_reason for name in names}
    assert all((reason == "error") is (name in guilty) for name, reason in reasons.items())
