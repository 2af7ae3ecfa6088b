"""What prompts take of a step, and how they divide it."""

from typing import Any

import pytest

from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.prefill_share import PrefillShare
from quire_worker.scheduling.speeds import LOOK_EVERY, StepSpeeds


def plans(r: Any, num_steps: int) -> list[dict[str, int]]:
    """Request -> tokens, of the next steps, each committed before the next is planned."""
    counts = []
    for _ in range(num_steps):
        plan, result = r.launch()
        counts.append(r.counts(plan))
        r.scheduler.commit(plan, result)
        r.scheduler.check()
    return counts


def test_decoding_rows_get_their_token_before_an_older_prompt_gets_the_rest(rig: Any) -> None:
    r = rig(budget=16)
    r.submit("a", 8)
    r.submit("long", 40)
    r.submit("b", 4)
    plans(r, 1)

    counts = plans(r, 4)

    assert counts == [
        {"a": 1, "long": 15},
        {"a": 1, "long": 15},
        {"a": 1, "long": 2, "b": 4},
        {"a": 1, "long": 1, "b": 1},
    ]


def test_prompts_beside_decoding_rows_take_no_more_than_their_share_of_a_step(rig: Any) -> None:
    r = rig(budget=64, prefill_tokens=10)
    r.submit("a", 8, max_tokens=4)
    plans(r, 1)
    r.submit("long", 60)

    counts = plans(r, 5)

    assert counts == [{"a": 1, "long": 10}, {"a": 1, "long": 10}, {"a": 1, "long": 10}, {"long": 30}, {"long": 1}]


def test_beside_whole_answers_prompts_take_all_of_a_step(rig: Any) -> None:
    r = rig(budget=64, prefill_tokens=10)
    r.submit("a", 8, is_streamed=False)
    r.submit("b", 8, is_streamed=False)
    plans(r, 1)
    r.submit("long", 90, is_streamed=False)

    counts = plans(r, 3)

    assert counts == [{"a": 1, "b": 1, "long": 62}, {"a": 1, "b": 1, "long": 28}, {"a": 1, "b": 1, "long": 1}]


def test_one_stream_among_whole_answers_keeps_steps_short_until_it_ends(rig: Any) -> None:
    r = rig(budget=64, prefill_tokens=10)
    r.submit("a", 8, is_streamed=False)
    r.submit("b", 8, is_streamed=False)
    r.submit("stream", 8, max_tokens=3)
    plans(r, 1)
    r.submit("long", 70, is_streamed=False)

    counts = plans(r, 3)

    assert counts == [
        {"a": 1, "b": 1, "stream": 1, "long": 10},
        {"a": 1, "b": 1, "stream": 1, "long": 10},
        {"a": 1, "b": 1, "long": 50},
    ]


def test_a_stream_whose_prompt_is_computed_has_no_tokens_that_come_late(rig: Any) -> None:
    r = rig(budget=64, prefill_tokens=10, blocks=400)
    r.submit("a", 8, is_streamed=False)
    plans(r, 1)
    r.submit("stream", 100)

    counts = plans(r, 3)

    assert counts == [{"a": 1, "stream": 63}, {"a": 1, "stream": 37}, {"a": 1, "stream": 1}]


@pytest.mark.parametrize(("is_streamed", "expected"), [(True, 10), (False, 61)])
def test_all_choices_of_a_request_are_streamed_or_none(rig: Any, *, is_streamed: bool, expected: int) -> None:
    r = rig(budget=64, prefill_tokens=10, blocks=400)
    r.submit("many", 8, n=3, is_streamed=is_streamed)
    plans(r, 1)
    r.scheduler.abort("many", 0)  # the one that computed the prompt
    r.submit("other", 8, is_streamed=False)
    plans(r, 1)
    r.submit("long", 120, is_streamed=False)

    plan, _ = r.launch()

    assert sorted(plan.num_tokens) == [1, 1, 1, expected]


@pytest.mark.parametrize(("is_streamed", "after"), [(True, 10), (False, 62)])
def test_a_preempted_choice_is_what_it_was_once_it_decodes_again(rig: Any, *, is_streamed: bool, after: int) -> None:
    r = rig(budget=64, prefill_tokens=10, blocks=400, caching=False)
    r.submit("other", 8, max_tokens=50, is_streamed=False)
    r.submit("victim", 8, max_tokens=50, is_streamed=is_streamed)
    plans(r, 2)
    r.scheduler._planner.preempt(r.scheduler._batch.running[-1], "test")
    r.submit("long", 200)

    counts = plans(r, 2)

    assert counts == [{"other": 1, "victim": 10, "long": 53}, {"other": 1, "victim": 1, "long": after}]


def test_a_stream_that_waits_for_blocks_keeps_steps_short(rig: Any) -> None:
    r = rig(budget=64, prefill_tokens=10, blocks=25, caching=False)
    r.submit("a", 9, is_streamed=False)
    r.submit("stream", 7)
    r.submit("leaves", 7, is_streamed=False)
    r.submit("long", 70, is_streamed=False)
    plans(r, 1)
    in_flight = r.launch()
    r.scheduler.abort("leaves")  # its blocks come free when the plan is committed: the stream waits for them

    plan, result = r.launch()

    assert r.counts(plan) == {"a": 1, "long": 10}
    r.scheduler.commit(*in_flight)
    r.scheduler.commit(plan, result)
    assert r.counts(r.launch()[0]) == {"a": 1, "stream": 1, "long": 9}


def test_a_stream_that_was_begun_elsewhere_keeps_steps_short(rig: Any) -> None:
    r = rig(budget=64, prefill_tokens=10)
    params = SamplingParams(max_tokens=20, temperature=0.0)
    r.scheduler.add(Submit(request_id="gone on", prompt_token_ids=[1] * 8, sampling=params, output_token_ids=[2, 3]))
    plans(r, 1)
    r.submit("long", 60, is_streamed=False)

    assert plans(r, 1) == [{"gone on": 1, "long": 10}]


def test_a_short_prompt_is_not_stuck_behind_a_long_one(rig: Any) -> None:
    r = rig(budget=16, partial=2)
    r.submit("long", 100)
    plans(r, 1)
    r.submit("brief", 12)

    counts = plans(r, 3)

    assert counts == [{"long": 12, "brief": 4}, {"long": 8, "brief": 8}, {"long": 15, "brief": 1}]


def test_a_short_prompt_behind_two_long_ones_gets_through(rig: Any) -> None:
    r = rig(budget=16, partial=3, blocks=100)
    r.submit("long", 100)
    r.submit("second", 120)
    r.submit("brief", 8)
    plans(r, 1)

    counts = plans(r, 3)

    assert counts == [{"long": 8, "second": 4, "brief": 4}, {"long": 12, "brief": 4}, {"long": 15, "brief": 1}]


def test_prompts_of_equal_length_are_computed_one_after_the_other(rig: Any) -> None:
    r = rig(budget=16, partial=2)
    r.submit("first", 60, max_tokens=1)
    r.submit("second", 60, max_tokens=1)

    counts = plans(r, 8)

    assert [step.get("first", 0) for step in counts] == [16, 12, 16, 16, 0, 0, 0, 0]
    assert sum(step.get("second", 0) for step in counts) == 60


def test_no_more_prompts_are_under_way_at_once_than_may_be(rig: Any) -> None:
    r = rig(budget=16, partial=2, blocks=300, max_model_len=200)
    for name in "abcd":
        r.submit(name, 100)

    plans(r, 4)

    assert [choice.request_id for choice in r.scheduler.queue] == ["c", "d"]


def test_the_first_prompt_gets_at_least_half() -> None:
    share = PrefillShare(max_partial=4)

    assert share.split([1000, 30, 10, 500], 100, 50) == [50, 30, 10, 10]
    assert share.split([1000, 30, 10], 100, 50) == [60, 30, 10]
    assert share.split([20, 500], 100, 50) == [20, 80]
    assert share.split([1000, 2000], 100, 50) == [100, 0]


def test_by_measured_speeds_a_step_with_prompts_takes_a_bounded_multiple_of_one_without() -> None:
    speeds = StepSpeeds()
    share = PrefillShare(speeds=speeds, max_slowdown=4.0)

    unmeasured = share.limit(8, 2048)
    for _ in range(20):
        speeds.add(2048, 1, 0.010 + 2047 / 20_000)
        speeds.add(8, 8, 0.010)
    measured = share.limit(8, 2048)

    assert unmeasured == 2048
    assert measured == pytest.approx(500, rel=0.05)  # two and a half times 10 ms more, at 20 tokens a millisecond
    assert share.limit(0, 2048) == 2048


def test_beside_whole_answers_decoding_keeps_a_sixteenth_of_the_time() -> None:
    speeds = StepSpeeds()
    share = PrefillShare(speeds=speeds, max_slowdown=4.0, max_slowdown_unread=16.0, max_tokens=100)

    unmeasured = share.limit(8, 8192, is_streamed=False)
    for _ in range(20):
        speeds.add(2048, 1, 0.010 + 2047 / 20_000)
        speeds.add(8, 8, 0.010)
    measured = share.limit(8, 8192, is_streamed=False)

    assert unmeasured == 8192
    assert measured == pytest.approx(2900, rel=0.05)  # fourteen and a half times 10 ms more, at 20 tokens a millisecond
    assert share.limit(8, 2048, is_streamed=False) == 2048
    assert share.limit(8, 8192) == 100


def test_beside_whole_answers_prompts_get_no_less_than_the_number_that_is_given_for_streams() -> None:
    speeds = StepSpeeds()
    for _ in range(40):
        speeds.add(8, 8, 0.01)
        speeds.add(1008, 8, 0.11)
    given = PrefillShare(max_tokens=4096, max_slowdown_unread=16.0, speeds=speeds)
    small = PrefillShare(max_tokens=100, max_slowdown_unread=16.0, speeds=speeds)

    limits = [share.limit(8, 8192, is_streamed=streamed) for share in (given, small) for streamed in (True, False)]

    assert limits[:3] == [4096, 4096, 100]
    assert 1000 < limits[3] < 2048


def test_where_tokens_are_dear_a_chunk_is_not_too_small_to_pay() -> None:
    speeds = StepSpeeds()
    share = PrefillShare(speeds=speeds, max_slowdown=4.0)

    for _ in range(20):
        speeds.add(100, 1, 1.0)
        speeds.add(8, 8, 0.010)

    assert share.limit(8, 2048) == 32


def test_prompts_sit_a_step_out_once_it_is_long_since_one_only_decoded(rig: Any) -> None:
    speeds = StepSpeeds()
    share = PrefillShare(speeds=speeds, max_slowdown=4.0, max_tokens=8)
    r = rig(budget=64, blocks=400, max_model_len=1500, rows=2, share=share)
    r.submit("talker", 4, max_tokens=200, ignore_eos=True)
    r.submit("long", 1000)
    seen = []

    for _ in range(3 + 2 * LOOK_EVERY):
        plan, result = r.launch()
        counts = r.counts(plan)
        r.scheduler.commit(plan, result)
        speeds.add(sum(counts.values()), len(counts), 0.01)
        seen.append(counts.get("long", 0))

    assert seen[0] == 60  # nobody decodes yet
    pauses = [step for step, tokens in enumerate(seen) if tokens == 0]
    assert pauses == [1, 2 + LOOK_EVERY, 3 + 2 * LOOK_EVERY][: len(pauses)]
    assert len(pauses) >= 2


def test_beside_whole_answers_prompts_sit_no_step_out(rig: Any) -> None:
    speeds = StepSpeeds()
    share = PrefillShare(speeds=speeds, max_slowdown=4.0, max_slowdown_unread=16.0)
    r = rig(budget=64, blocks=400, max_model_len=1500, rows=2, share=share)
    r.submit("talker", 4, max_tokens=200, ignore_eos=True, is_streamed=False)
    r.submit("long", 700, is_streamed=False)

    counts = plans(r, 10)  # which nobody measures: `speeds` wants to see a step that only decodes

    assert speeds.wants_decoding
    assert [step["long"] for step in counts] == [60] + 9 * [63]
