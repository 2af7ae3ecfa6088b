"""Policy of one step: who computes how much, who enters, who gives way."""

from typing import Any


def waiting(r: Any) -> list[str]:
    return [choice.request_id for choice in r.scheduler.queue]


def running(r: Any) -> list[str]:
    return [choice.request_id for choice in r.scheduler._batch.running]


def plans(r: Any, num_steps: int) -> list[dict[str, int]]:
    """Request -> tokens, of the next steps, each committed before the next is planned."""
    counts = []
    for _ in range(num_steps):
        plan, result = r.launch()
        counts.append(r.counts(plan))
        r.scheduler.commit(plan, result)
        r.scheduler.check()
    return counts


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks(rig: Any) -> None:
    r = rig(budget=8)
    r.submit("a", 20)

    counts = plans(r, 5)

    assert counts == [{"a": 8}, {"a": 8}, {"a": 4}, {"a": 1}, {"a": 1}]


def test_running_choices_get_their_tokens_before_anyone_is_admitted(rig: Any) -> None:
    r = rig(budget=8)
    r.submit("a", 8)
    plans(r, 1)
    r.submit("b", 20)

    counts = plans(r, 2)

    assert counts == [{"a": 1, "b": 7}, {"a": 1, "b": 7}]


def test_the_oldest_waiting_choice_is_admitted_first_and_holds_up_the_rest(rig: Any) -> None:
    r = rig(blocks=6, budget=64)
    r.submit("a", 12)
    r.submit("long", 16)
    r.submit("short", 4)

    counts = plans(r, 1)

    assert counts == [{"a": 12}]
    assert waiting(r) == ["long", "short"]


def test_admission_reserves_the_whole_prompt_although_only_a_chunk_is_computed(rig: Any) -> None:
    r = rig(blocks=10, budget=8)
    r.submit("a", 32)

    plans(r, 1)

    assert r.num_used_blocks == 8


def test_no_more_rows_than_the_batch_has_are_filled(rig: Any) -> None:
    r = rig(rows=2)
    for name in "abc":
        r.submit(name, 4)

    plan, _ = r.launch()

    assert plan.rows == [0, 1]
    assert waiting(r) == ["c"]


def test_a_freed_row_is_the_next_one_taken(rig: Any) -> None:
    r = rig(rows=3)
    for name in "abc":
        r.submit(name, 4)
    plans(r, 1)
    r.scheduler.abort("b")
    r.submit("d", 4)

    plan, _ = r.launch()

    assert plan.freed_rows == [1]
    assert [new.row for new in plan.new_rows] == [1]


def test_the_youngest_choice_gives_its_blocks_to_the_oldest(rig: Any) -> None:
    r = rig(blocks=4, budget=16)
    r.submit("a", 8)
    r.submit("b", 8)
    plans(r, 1)

    counts = plans(r, 1)

    assert counts == [{"a": 1}]
    assert waiting(r) == ["b"]
    assert r.scheduler.counters.num_preemptions == 1


def test_nobody_is_admitted_in_a_step_that_evicts(rig: Any) -> None:
    r = rig(blocks=4, budget=16)
    r.submit("a", 8)
    r.submit("b", 7)
    r.submit("c", 1)
    plans(r, 1)

    plan, _ = r.launch()

    assert plan.new_rows == []
    assert waiting(r) == ["b", "c"]


def test_a_preempted_choice_goes_back_to_the_front_by_age_and_keeps_its_tokens(rig: Any) -> None:
    r = rig(blocks=6, budget=32, rows=2)
    r.submit("a", 8, max_tokens=9)
    r.submit("b", 8, max_tokens=9)
    r.submit("c", 4, max_tokens=1)
    alone = rig()
    alone.submit("a", 8, max_tokens=9)
    alone.submit("b", 8, max_tokens=9)
    alone.submit("c", 4, max_tokens=1)

    while not r.scheduler.counters.num_preemptions:
        r.step()
    queue = waiting(r)
    tokens = r.run()

    assert queue == ["b", "c"]
    assert tokens == alone.run()


def test_each_preemption_is_told_once_with_what_the_choice_says_next(rig: Any) -> None:
    r = rig(blocks=12, budget=64, rows=4)
    for name in "abc":
        r.submit(name, 8, max_tokens=20)
    r.submit("late", 4, max_tokens=20)

    outputs = [output for _ in range(400) if r.scheduler.has_work for output in r.step()]

    told = {name: sum(o.num_preemptions for o in outputs if o.request_id == name) for name in ("a", "late")}
    assert sum(output.num_preemptions for output in outputs) == r.scheduler.counters.num_preemptions > 0
    assert told["a"] == 0
    assert told["late"] > 0


def test_a_choice_that_ends_where_it_waits_tells_how_often_it_was_preempted(rig: Any) -> None:
    r = rig(blocks=4, budget=16)
    r.submit("a", 8)
    r.submit("b", 8, timeout_s=5.0)
    plans(r, 2)

    r.time_s = 6.0
    (ended,) = r.scheduler.expire()

    assert (ended.request_id, ended.finish_reason, ended.num_preemptions) == ("b", "deadline", 1)


def test_a_preempted_choice_finds_its_own_blocks_again(rig: Any) -> None:
    r = rig(blocks=6, budget=32, rows=2)
    r.submit("a", 8, max_tokens=9)
    r.submit("b", 8, max_tokens=9)

    r.run()

    assert r.scheduler.counters.num_preemptions > 0
    assert r.scheduler.counters.prefix_hits > 0
    assert r.scheduler.counters.num_cached_tokens == 0  # told per request: nothing was cached when it first came


def test_a_second_request_with_the_same_prefix_computes_only_the_rest(rig: Any) -> None:
    r = rig()
    shared = list(range(16))
    r.submit("a", [*shared, 1])
    r.run()
    r.submit("b", [*shared, 2, 3])

    plan, _ = r.launch()

    assert r.counts(plan) == {"b": 2}
    assert plan.new_rows[0].num_computed == 16


def test_cached_prompt_tokens_are_told_with_the_first_token_only(rig: Any) -> None:
    r = rig()
    r.submit("a", list(range(17)), max_tokens=1)
    r.run()
    r.submit("b", list(range(17)), max_tokens=2)

    first, second = r.step(), r.step()

    assert [output.num_cached_tokens for output in first + second] == [16, 0]


def test_a_plan_brings_new_blocks_only_for_rows_that_grew(rig: Any) -> None:
    r = rig()
    r.submit("a", 7)
    r.submit("b", 5)

    plans(r, 1)
    seventh, eighth = r.launch(), None
    r.scheduler.commit(*seventh)
    eighth = r.launch()

    assert seventh[0].new_blocks == []
    assert [(row, group, len(blocks)) for row, group, blocks in eighth[0].new_blocks] == [(0, 0, 1)]


def test_an_empty_plan_keeps_freed_rows_for_the_next_plan_with_work(rig: Any) -> None:
    r = rig()
    r.submit("a", 4, max_tokens=1)
    plans(r, 1)

    empty = r.scheduler.plan_step()
    r.submit("b", 4)
    plan, _ = r.launch()

    assert empty.rows == empty.freed_rows == []
    assert r.scheduler.commit(empty, None) == []
    assert plan.freed_rows == [0]


def test_ends_by_length_stop_token_and_model_length(rig: Any) -> None:
    r = rig(max_model_len=32)
    r.submit("free", 8, max_tokens=6)
    free = r.run()["free", 0]
    r.submit("stop", rig_prompt(r, "free", 8), max_tokens=6, stop_token_ids=(free[2],))
    r.submit("long", 30, max_tokens=100)

    r.run()

    assert (r.ends["free", 0].finish_reason, len(free)) == ("length", 6)
    assert r.ends["stop", 0].finish_reason == "stop"
    assert r.ends["stop", 0].stop_token_id == free[2]
    assert r.tokens["stop", 0] == free[: free.index(free[2]) + 1]
    assert (r.ends["long", 0].finish_reason, len(r.tokens["long", 0])) == ("length", 2)


def rig_prompt(r: Any, name: str, num_tokens: int) -> list[int]:
    """The prompt that submit() makes for `name`."""
    other = type(r)()
    other.submit(name, num_tokens)
    prompt: list[int] = other.scheduler.queue.head.token_ids
    return prompt


def test_ignore_eos_goes_on_after_an_end_token_but_not_after_a_stop_token(rig: Any) -> None:
    r = rig()
    everything = tuple(range(64))
    r.submit("eos", 4, max_tokens=5, eos_token_ids=everything)
    r.submit("ignore", 4, max_tokens=5, eos_token_ids=everything, ignore_eos=True)

    tokens = r.run()

    assert len(tokens["eos", 0]) == 1
    assert len(tokens["ignore", 0]) == 5


def test_no_choice_ends_before_min_tokens(rig: Any) -> None:
    r = rig()
    endings = tuple(range(60))
    r.submit("a", 4, max_tokens=9, min_tokens=5, eos_token_ids=endings)

    tokens = r.run()["a", 0]

    assert len(tokens) > 5
    assert not set(tokens[:5]) & set(endings)


def test_a_token_on_its_way_is_already_scheduled_for_the_next_step(rig: Any) -> None:
    r = rig(depth=2)
    r.submit("a", 4, max_tokens=3)

    plan_0, result_0 = r.launch()
    plan_1, result_1 = r.launch()
    plan_2, _ = r.launch()
    plan_3 = r.scheduler.plan_step()

    assert [plan.num_tokens for plan in (plan_0, plan_1, plan_2)] == [[4], [1], [1]]
    assert plan_3.rows == []  # three tokens are on their way and max_tokens is 3
    assert len(r.scheduler.commit(plan_0, result_0)) == 1
    assert len(r.scheduler.commit(plan_1, result_1)) == 1


def test_the_surplus_token_of_a_finished_choice_is_dropped_and_its_blocks_stay_until_then(rig: Any) -> None:
    r = rig(depth=2)
    r.submit("a", 8, max_tokens=5, stop_token_ids=tuple(range(64)))
    first = r.launch()
    second = r.launch()

    ended = r.scheduler.commit(*first)
    held = r.num_used_blocks
    surplus = r.scheduler.commit(*second)

    assert [output.finish_reason for output in ended] == ["stop"]
    assert held > 0
    assert surplus == []
    assert r.num_used_blocks == 0


def test_the_token_on_its_way_to_a_preempted_choice_is_kept(rig: Any) -> None:
    r = rig(blocks=4, budget=16, depth=2)
    r.submit("a", 8, max_tokens=4)
    r.submit("b", 8, max_tokens=4)
    first = r.launch()

    second = r.launch()
    outputs = r.scheduler.commit(*first)

    assert first[0].rows == [0, 1]
    assert second[0].rows == []  # "b" was evicted, but its blocks are free only after the first step
    assert waiting(r) == ["b"]
    assert [output.request_id for output in outputs] == ["a", "b"]
    assert len(r.scheduler.queue.head.token_ids) == 9


def test_only_as_many_are_evicted_as_the_leaving_blocks_do_not_cover(rig: Any) -> None:
    r = rig(blocks=6, budget=32, depth=2)
    for name in "abc":
        r.submit(name, 8)
    first = r.launch()

    second = r.launch()

    assert first[0].rows == [0, 1, 2]
    assert running(r) == ["a", "b"]
    assert second[0].rows == []


def test_an_aborted_choice_gives_up_row_and_blocks_without_output(rig: Any) -> None:
    r = rig()
    r.submit("a", 8)
    r.submit("b", 8)
    plans(r, 1)

    r.scheduler.abort("a")
    r.scheduler.abort("unknown")

    assert running(r) == ["b"]
    assert {output.request_id for output in r.step()} == {"b"}


def test_an_abort_while_a_step_is_in_flight_drops_its_token(rig: Any) -> None:
    r = rig()
    r.submit("a", 8)
    step = r.launch()

    r.scheduler.abort("a")
    outputs = r.scheduler.commit(*step)

    assert outputs == []
    assert not r.scheduler.has_work
    assert r.num_used_blocks == 0


def test_queue_times_are_counted_at_first_admission(rig: Any) -> None:
    r = rig(rows=1)
    r.submit("a", 4, max_tokens=1)
    r.submit("b", 4, max_tokens=1)
    r.step()
    r.time_s = 2.5

    r.run()

    assert r.scheduler.counters.queue_time_s == [0.0, 2.5]


def test_blocks_behind_a_window_are_replaced_by_the_null_block_in_the_next_plan(rig: Any) -> None:
    r = rig(windows=(6,), budget=4)
    r.submit("a", 16)

    changes = []
    for _ in range(4):
        plan, result = r.launch()
        changes += plan.replaced_block_ids
        r.scheduler.commit(plan, result)

    # After 12 tokens only 7..11 are still read; the change travels with the fourth plan.
    assert changes == [(0, 0, 0, 0)]
    assert r.num_used_blocks == 4 - 2


def test_a_preempted_choice_is_not_admitted_again_while_its_token_is_on_its_way(rig: Any) -> None:
    r = rig(blocks=8, budget=64)
    r.submit("old", 7)
    r.submit("done", 16, max_tokens=1)
    r.submit("young", 6)
    first, second = r.launch(), r.launch()
    r.launch()  # "old" needs a block, so "young" is evicted although two steps with it are in flight

    r.scheduler.commit(*first)  # "done" frees more than "young" needs
    third, _ = r.launch()
    r.scheduler.commit(*second)
    fourth, _ = r.launch()

    assert r.counts(third) == {"old": 1}
    assert [new.request_id for new in fourth.new_rows] == ["young"]
    assert len(fourth.new_rows[0].token_ids) == 6 + 2
