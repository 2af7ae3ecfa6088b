"""Who goes first and who gives way under the policies priority and sjf, and that nobody starves."""

import logging
from typing import Any

import pytest

from quire_worker.scheduling.shortest_first import MAX_PREEMPTIONS


def waiting(r: Any) -> list[str]:
    return [choice.request_id for choice in r.scheduler.queue]


def running(r: Any) -> list[str]:
    return [choice.request_id for choice in r.scheduler._batch.running]


def run_in_time(r: Any, step_s: float = 0.1) -> list[str]:
    """Step until nothing is left, each step taking `step_s`. Returns the requests in the order of their ends."""
    order: list[str] = []
    for _ in range(5000):
        if not r.scheduler.has_work:
            return order
        order += [output.request_id for output in r.step() if output.finish_reason is not None]
        r.time_s += step_s
    raise AssertionError("the engine does not come to an end")


def test_lower_priorities_go_first_and_equals_by_arrival(rig: Any) -> None:
    r = rig(policy="priority", rows=1)
    for name, priority in (("low", 5), ("b", 0), ("c", 0), ("urgent", -1)):
        r.submit(name, 4, priority=priority, max_tokens=1)

    order = run_in_time(r)

    assert order == ["urgent", "b", "c", "low"]


def test_every_whole_number_is_a_priority_of_its_own(rig: Any) -> None:
    r = rig(policy="priority", rows=1)
    for priority in (10**9, 7, 1_700_000_000, 8, -(10**9)):
        r.submit(str(priority), 4, priority=priority, max_tokens=1)

    assert waiting(r) == ["-1000000000", "7", "8", "1000000000", "1700000000"]


def test_the_least_urgent_gives_its_blocks_to_the_most_urgent(rig: Any) -> None:
    r = rig(policy="priority", blocks=4, budget=16)
    r.submit("low", 8, priority=1)
    r.submit("high", 8, priority=0)
    r.step()

    r.step()

    assert (running(r), waiting(r)) == (["high"], ["low"])


@pytest.mark.parametrize("policy", ["priority", "sjf"])
def test_a_choice_is_overtaken_only_by_those_that_come_within_the_aging_time(rig: Any, policy: str) -> None:
    r = rig(policy=policy, rows=1, aging_s=10.0, max_model_len=256)
    r.submit("running", 4, max_tokens=4)
    r.step()
    r.submit("patient", 100, priority=10**9, max_tokens=100)
    arrivals = {}
    for index in range(60):  # one at a time, as fast as they are served, for 24 s
        name = f"short-{index}"
        arrivals[name] = r.time_s
        r.submit(name, 4, priority=-(10**9), max_tokens=4)
        while any(choice.request_id == name for choice in r.scheduler.queue) and "patient" in waiting(r):
            r.step()
            r.time_s += 0.1
        if "patient" not in waiting(r):
            break
    admitted_s = r.time_s

    assert 5.0 < admitted_s < 11.0
    assert set(run_in_time(r)) >= {"patient"}


def test_sjf_serves_the_shortest_expected_job_first(rig: Any) -> None:
    r = rig(policy="sjf", rows=1)
    r.submit("running", 4, max_tokens=2)
    r.step()
    for name, prompt, max_tokens in (("long", 4, 64), ("short", 4, 2), ("middle", 4, 16), ("long prompt", 200, 15)):
        r.submit(name, prompt, max_tokens=max_tokens)

    order = run_in_time(r)

    assert order == ["running", "short", "long prompt", "middle", "long"]


def test_sjf_counts_only_prompt_tokens_that_are_not_cached(rig: Any) -> None:
    r = rig(policy="sjf", rows=1)
    r.submit("first", 200, max_tokens=1)
    run_in_time(r)
    r.submit("fresh", 120, max_tokens=1)
    cached = r.kv.pool.num_free
    prompt = [(sum(b"first") * 13 + 7 * i) % 64 for i in range(200)]
    r.submit("cached", prompt, max_tokens=1)

    assert cached == r.info.num_blocks - 1
    assert waiting(r) == ["cached", "fresh"]


def test_sjf_lets_a_short_job_in_where_a_long_one_holds_the_only_row(
    rig: Any, caplog: pytest.LogCaptureFixture
) -> None:
    r = rig(policy="sjf", rows=1)
    alone = rig()
    for each in (r, alone):
        each.submit("long", 8, max_tokens=100)
        each.step()
        each.submit("short", 8, max_tokens=2)

    with caplog.at_level(logging.INFO):
        order = run_in_time(r)

    assert order == ["short", "long"]
    assert r.scheduler.counters.num_preemptions == 1
    assert r.tokens == alone.run()
    assert [record.message for record in caplog.records] == ["preempted"]


def test_sjf_frees_blocks_for_a_short_job_only_if_they_suffice(rig: Any) -> None:
    r = rig(policy="sjf", rows=4, blocks=50, max_model_len=190)
    r.submit("long", 160, max_tokens=30)
    for _ in range(4):
        r.step()
    r.time_s = 1.0
    r.submit("brief", 60, max_tokens=1)

    r.step()

    assert r.ends["brief", 0].finish_reason == "length"
    assert waiting(r) == ["long"]
    assert r.scheduler.counters.num_preemptions == 1


def test_sjf_leaves_a_long_runner_alone_that_is_nearly_done(rig: Any) -> None:
    r = rig(policy="sjf", rows=1)
    r.submit("long", 8, max_tokens=40)
    for _ in range(38):
        r.step()
    r.time_s = 1.0
    r.submit("short", 8, max_tokens=3)

    order = run_in_time(r)

    assert order == ["long", "short"]
    assert r.scheduler.counters.num_preemptions == 0


def test_a_long_runner_gives_way_a_bounded_number_of_times(rig: Any) -> None:
    r = rig(policy="sjf", rows=1, aging_s=10_000.0)
    r.submit("long", 8, max_tokens=200)
    for index in range(10):
        r.submit(f"short-{index}", 4, max_tokens=1)
        for _ in range(4):
            r.step()
            r.time_s += 1.0
    (long,) = [c for c in (*r.scheduler._batch.running, *r.scheduler.queue) if c.request_id == "long"]

    order = run_in_time(r)

    assert long.num_given_way == MAX_PREEMPTIONS
    assert "long" in order


def test_sjf_learns_from_finished_outputs_how_long_others_will_be(rig: Any) -> None:
    r = rig(policy="sjf", rows=4)
    everything = tuple(range(64))
    for index in range(20):  # all end with their first token, whatever their limit is
        r.submit(f"quick-{index}", 4, max_tokens=100, stop_token_ids=everything)
    run_in_time(r)
    for index in range(4):
        r.submit(f"running-{index}", 4, max_tokens=200)
    r.step()
    r.submit("limited", 4, max_tokens=40)
    r.submit("stops early", 4, max_tokens=200, stop_token_ids=everything)

    assert waiting(r) == ["stops early", "limited"]
