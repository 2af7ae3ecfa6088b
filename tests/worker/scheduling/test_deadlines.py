"""Requests that run out of time, waiting or running."""

from typing import Any

from quire_worker.scheduling.deadlines import DEADLINE, Deadlines


def test_a_request_that_was_not_admitted_in_time_is_ended_and_never_computed(rig: Any) -> None:
    r = rig(rows=1)
    r.submit("first", 4, max_tokens=20)
    r.submit("late", 4, queue_timeout_s=2.0, n=2)
    r.step()
    r.time_s = 1.9
    before = r.step()
    r.time_s = 2.0

    outputs = r.step()

    assert [(o.request_id, o.finish_reason) for o in before] == [("first", None)]
    assert [(o.request_id, o.choice, o.finish_reason, o.error) for o in outputs if o.finish_reason] == [
        ("late", 0, "queue_timeout", "waiting"),
        ("late", 1, "queue_timeout", "waiting"),
    ]
    assert r.scheduler.num_waiting == 0


def test_the_queue_timeout_of_a_request_that_began_means_nothing_even_once_it_is_preempted(rig: Any) -> None:
    r = rig(blocks=4, budget=16)
    r.submit("a", 8, queue_timeout_s=1.0)
    r.submit("b", 8, queue_timeout_s=1.0)
    r.step()
    r.step()
    assert r.scheduler.counters.num_preemptions == 1
    r.time_s = 5.0

    tokens = r.run()

    assert len(tokens["a", 0]) == len(tokens["b", 0]) == 8
    assert {output.finish_reason for output in r.ends.values()} == {"length"}


def test_a_running_request_is_ended_at_its_deadline_and_its_blocks_are_free_at_once(rig: Any) -> None:
    r = rig()
    r.submit("a", 20, max_tokens=100, timeout_s=3.0)
    r.step()
    r.time_s = 3.0

    outputs = r.step()

    assert [(o.finish_reason, o.error) for o in outputs] == [("deadline", "running")]
    assert (r.num_used_blocks, r.scheduler.has_work) == (0, False)


def test_blocks_of_an_expired_request_wait_for_the_steps_in_flight(rig: Any) -> None:
    r = rig(depth=2)
    r.submit("a", 20, max_tokens=100, timeout_s=3.0)
    r.step()
    r.time_s = 3.0

    outputs = r.step()

    assert [o.finish_reason for o in outputs] == ["deadline"]
    assert r.num_used_blocks == 0
    assert r.run() == {("a", 0): r.tokens["a", 0]}


def test_a_deadline_that_passes_in_the_queue_ends_the_request_there(rig: Any) -> None:
    r = rig(rows=1)
    r.submit("first", 4, max_tokens=20)
    r.submit("late", 4, timeout_s=1.0, queue_timeout_s=5.0)
    r.step()
    r.time_s = 1.0

    outputs = r.step()

    assert [(o.request_id, o.finish_reason, o.error) for o in outputs if o.finish_reason] == [
        ("late", "deadline", "waiting")
    ]


def test_a_request_of_the_same_name_is_not_ended_by_its_forerunners_deadline(rig: Any) -> None:
    r = rig()
    r.submit("a", 4, max_tokens=1, timeout_s=1.0)
    r.step()
    r.time_s = 0.9
    del r.ends["a", 0]
    r.submit("a", 4, max_tokens=2)
    r.step()
    r.time_s = 1.5

    outputs = r.step()

    assert [o.finish_reason for o in outputs] == ["length"]


def test_moments_of_requests_that_ended_do_not_pile_up() -> None:
    deadlines = Deadlines()
    for index in range(5000):
        deadlines.add(DEADLINE, 1000.0 + index, str(index), index)

    deadlines.forget_ended({"17"})

    assert deadlines.next_s == 1017.0
    assert deadlines.take_due(10_000.0) == [(DEADLINE, "17", 17)]
    assert deadlines.next_s == float("inf")
