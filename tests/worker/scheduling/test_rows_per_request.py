"""One client's request of many prompts or choices leaves rows to others that wait, and takes all when nobody does."""

from collections import Counter
from typing import Any

import pytest


def running(r: Any) -> dict[str, int]:
    """Rows by the client's request."""
    return dict(Counter(choice.origin for choice in r.scheduler._batch.running))


def submit_many(r: Any, origin: str, count: int, **fields: Any) -> None:
    for number in range(count):
        r.submit(f"{origin}-{number}", 4, origin=origin, ignore_eos=True, **fields)


def test_a_request_of_many_prompts_takes_all_rows_while_nobody_else_waits(rig: Any) -> None:
    r = rig(rows=8, budget=256, rows_per_request=2)
    submit_many(r, "batch", 20)

    r.step()

    assert running(r) == {"batch": 8}
    assert r.scheduler.num_waiting == 12


def test_those_that_wait_beside_it_come_in_before_the_rest_of_its_prompts(rig: Any) -> None:
    r = rig(rows=8, budget=256, rows_per_request=2)
    submit_many(r, "batch", 20, max_tokens=6)
    for name in "abc":
        r.submit(name, 4, max_tokens=30, ignore_eos=True)

    r.step()

    assert running(r) == {"batch": 5, "a": 1, "b": 1, "c": 1}


def test_rows_that_come_free_go_to_others_until_it_holds_no_more_than_its_bound(rig: Any) -> None:
    r = rig(rows=4, budget=256, rows_per_request=1)
    submit_many(r, "batch", 9, max_tokens=3)
    r.step()
    for name in "abcde":
        r.submit(name, 4, max_tokens=12, ignore_eos=True)

    for _ in range(4):
        r.step()

    assert running(r) == {"a": 1, "b": 1, "c": 1, "batch": 1}
    assert r.scheduler.num_waiting == 2 + 4


def test_two_large_requests_take_turns_and_their_prompts_come_in_order(rig: Any) -> None:
    r = rig(rows=4, budget=256, rows_per_request=2)
    submit_many(r, "first", 10, max_tokens=5)
    submit_many(r, "second", 10, max_tokens=5)
    order = []

    for _ in range(400):
        if not r.scheduler.has_work:
            break
        order += [output.request_id for output in r.step() if output.queue_time_s is not None]

    assert [name for name in order if name.startswith("first")] == [f"first-{number}" for number in range(10)]
    assert order[:8] == ["first-0", "first-1", "second-0", "second-1", "first-2", "first-3", "second-2", "second-3"]


def test_choices_of_one_prompt_are_bounded_too(rig: Any) -> None:
    r = rig(rows=6, budget=256, rows_per_request=2)
    r.submit("many", 8, n=12, ignore_eos=True, max_tokens=10)
    for name in "abcd":
        r.submit(name, 4, max_tokens=30, ignore_eos=True)

    r.step()
    r.step()

    assert running(r) == {"many": 2, "a": 1, "b": 1, "c": 1, "d": 1}


def test_what_was_preempted_comes_back_before_later_prompts_of_its_request(rig: Any) -> None:
    r = rig(rows=3, budget=256, blocks=9, rows_per_request=1)
    submit_many(r, "batch", 6, max_tokens=12)
    for _ in range(200):
        if r.scheduler.counters.num_preemptions:
            break
        r.step()

    waiting = [choice.request_id for choice in r.scheduler.queue]

    assert waiting == sorted(waiting)
    assert waiting[0] == "batch-2"


@pytest.mark.parametrize("bound", [1, 3])
def test_answers_are_the_same_whatever_the_bound(rig: Any, bound: int) -> None:
    bounded, free = (rig(rows=4, budget=32, blocks=40, rows_per_request=rows) for rows in (bound, 10**9))
    for r in (bounded, free):
        submit_many(r, "batch", 12, max_tokens=7)
        r.submit("choices", 6, n=5, max_tokens=7)
        for name in "abc":
            r.submit(name, 9, max_tokens=7)

    assert bounded.run() == free.run()


def test_what_is_aborted_while_it_is_parked_leaves_nothing_behind(rig: Any) -> None:
    r = rig(rows=2, budget=64, rows_per_request=1)
    submit_many(r, "batch", 6)
    r.submit("other", 4)
    r.step()

    for number in range(6):
        r.scheduler.abort(f"batch-{number}")
    r.step()

    assert running(r) == {"other": 1}
    assert (r.scheduler.num_waiting, r.scheduler.queue.num_tokens) == (0, 0)
    assert r.scheduler.queue.head is None
