"""What is taken into the queue, and what is refused with which reason."""

from typing import Any


def test_an_empty_prompt_is_invalid(rig: Any) -> None:
    rejection = rig().submit("a", [])

    assert (rejection.reason, "prompt" in rejection.message) == ("invalid", True)


def test_token_ids_outside_the_vocabulary_are_invalid(rig: Any) -> None:
    r = rig()

    reasons = [r.submit("a", [1, 64]).reason, r.submit("b", [-1]).reason]

    assert reasons == ["invalid", "invalid"]


def test_a_prompt_that_leaves_no_room_for_a_token_is_too_long(rig: Any) -> None:
    r = rig(max_model_len=32)

    assert r.submit("fits", 31) is None
    rejection = r.submit("long", 32)

    assert rejection.reason == "too_long"
    assert "31" in rejection.message


def test_more_choices_than_could_ever_wait_are_invalid_rather_than_retried(rig: Any) -> None:
    rejection = rig(rows=4, queue=10).submit("a", 4, n=15)

    assert rejection.reason == "invalid"
    assert "n:" in rejection.message


def test_a_request_id_in_use_is_invalid_until_it_ends(rig: Any) -> None:
    r = rig()
    r.submit("a", 4)

    reason = r.submit("a", 4).reason
    r.run()

    assert reason == "invalid"
    assert r.submit("a", 4) is None


def test_the_queue_is_bounded_by_choices_beyond_the_free_rows(rig: Any) -> None:
    r = rig(rows=2, queue=3)

    taken = [r.submit(str(i), 4) is None for i in range(7)]

    assert taken == [True] * 5 + [False] * 2


def test_each_choice_of_a_request_counts_as_waiting(rig: Any) -> None:
    r = rig(rows=2, queue=3)
    r.submit("a", 4, n=3)

    rejection = r.submit("b", 4, n=3)

    assert rejection.reason == "queue_full"
    assert "3 choices" in rejection.message


def test_the_queue_is_bounded_by_prompt_tokens_but_an_empty_one_takes_any_prompt(rig: Any) -> None:
    r = rig(queue_tokens=50)

    first = r.submit("a", 100)
    second = r.submit("b", 10)

    assert first is None
    assert second.reason == "queue_full"


def test_a_rejected_request_leaves_nothing_behind(rig: Any) -> None:
    r = rig(queue_tokens=50)
    r.submit("a", 40)

    r.submit("b", 40)

    assert r.scheduler.num_waiting == 1
    assert r.scheduler.num_uncached_tokens == 40
    assert set(r.run()) == {("a", 0)}


def test_a_request_is_taken_again_once_the_queue_has_room(rig: Any) -> None:
    r = rig(rows=1, queue=1)
    r.submit("a", 4)
    r.submit("b", 4)

    full = r.submit("c", 4)
    r.run()

    assert full.reason == "queue_full"
    assert r.submit("c", 4) is None
