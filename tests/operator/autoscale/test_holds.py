"""What keeps replicas although the targets ask for fewer, or holds growth back: loading, KV, panic, unknown demand, restarts."""

from dataclasses import replace

import pytest

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.history import History
from quire_operator.autoscale.policy import DEFAULT_UP, Direction, Panic, Target
from tests.operator.autoscale.worlds import FREE, LONG_AGO, NOW, Service, policy, signal


def test_without_targets_demand_is_sized_by_what_engines_say_that_one_replica_runs() -> None:
    of = policy(targets=())

    verdict = decide(signal(1, 33, capacity=16), of, LONG_AGO, NOW)
    later = decide(signal(3, 60), of, verdict.history, NOW + 5)

    assert (verdict.replicas, verdict.message) == (3, "demand 33 at 16 a replica asks for 3 replicas")
    assert later.replicas == 4, "what was told counts on while nobody tells"


def test_before_any_engine_has_told_its_capacity_the_number_stays() -> None:
    verdict = decide(signal(1, 33), policy(targets=()), LONG_AGO, NOW)

    assert (verdict.replicas, verdict.reason) == (1, "DemandUnknown")
    assert verdict.message == "what one replica runs at once unknown; stays at 1 replica"


def test_loading_replicas_are_counted_so_a_total_asks_once() -> None:
    service = Service(policy(value=8.0, max_replicas=20), replicas=1, startup_s=120)

    numbers = service.run(60, lambda _: 64.0)

    assert numbers == [8] * 12
    assert service.told[-1].reason == "WithinTolerance"


def test_a_ratio_asks_for_no_more_while_what_it_asked_for_loads() -> None:
    of = policy("QueueWait", 0.5, max_replicas=64)
    slow = {"readings": {"QueueWait": 1.0, "Demand": 9.0}}
    first = decide(signal(2, **slow), of, LONG_AGO, NOW)

    then = decide(signal(4, ready=2, loading=2, **slow), of, first.history, NOW + 30)

    assert first.replicas == 4
    assert (then.replicas, then.reason) == (4, "Loading")
    assert then.message == "queue wait 1000 ms against 500 ms, while 2 of 4 replicas load"


def test_a_replica_that_loads_for_longer_than_a_start_takes_is_a_fault_and_holds_nothing() -> None:
    of = policy("QueueWait", 0.5, max_replicas=64, startup_s=600.0)
    stuck = {"readings": {"QueueWait": 1.0, "Demand": 9.0}, "ready": 3, "loading": 1}
    history = replace(LONG_AGO, loading_since_s=NOW - 600)

    verdict = decide(signal(4, **stuck), of, history, NOW)

    assert (verdict.replicas, verdict.reason) == (6, "AboveTarget")


def test_nothing_goes_while_a_replica_loads() -> None:
    verdict = decide(signal(5, 1, ready=4, loading=1), policy(), LONG_AGO, NOW)
    ready = decide(signal(5, 1), policy(), verdict.history, NOW + 5)

    assert (verdict.replicas, verdict.reason) == (5, "Loading")
    assert (ready.replicas, ready.reason) == (1, "BelowTarget")


def test_the_cooldown_of_a_service_begins_when_its_start_is_over() -> None:
    """Whoever woke it may be gone before it is ready; it is not put to sleep as it wakes."""
    service = Service(policy(min_replicas=0, cooldown_s=60), replicas=0, startup_s=100)
    service.look(1)
    service.now_s += 5

    numbers = service.run(200, lambda _: 0.0)

    assert numbers == [1] * 31 + [0] * 9, "it loaded when looked at after 95 s; 60 s of cooldown from there"


def test_a_start_that_never_ends_does_not_keep_a_service_awake_for_ever() -> None:
    service = Service(policy(min_replicas=0, cooldown_s=60, startup_s=300.0), replicas=0, startup_s=1e9)
    service.look(1)
    service.now_s += 5

    numbers = service.run(500, lambda _: 0.0)

    assert numbers[70:72] == [1, 0], "what loads for 300 s counts as a start; 60 s of cooldown from there"


def test_replicas_go_only_as_far_as_the_kv_in_use_fits_on_the_others() -> None:
    kv = {"kv_used_tokens": 250_000, "kv_tokens_per_replica": 100_000}

    verdict = decide(signal(8, 2, **kv), policy(), LONG_AGO, NOW)

    assert (verdict.replicas, verdict.reason, verdict.is_limited) == (4, "KvWouldNotFit", True)
    assert verdict.message.endswith(
        "250000 tokens of KV in use need 4 replicas of 100000 tokens each, filled to 80% at most"
    )


def test_kv_that_is_full_already_vetoes_what_would_go_and_starts_nothing() -> None:
    kv = {"kv_used_tokens": 790_000, "kv_tokens_per_replica": 100_000}

    verdict = decide(signal(8, 2, **kv), policy(), LONG_AGO, NOW)

    assert (verdict.replicas, verdict.reason) == (8, "KvWouldNotFit")


def test_unknown_kv_and_a_fill_of_zero_veto_nothing() -> None:
    full = {"kv_used_tokens": 800_000, "kv_tokens_per_replica": 100_000}

    unknown = decide(signal(8, 2, kv_tokens_per_replica=100_000), policy(), LONG_AGO, NOW)
    without = decide(signal(8, 2, **full), policy(max_kv_fill=0.0), LONG_AGO, NOW)

    assert (unknown.replicas, without.replicas) == (2, 2)


def test_a_burst_breaks_the_limits_and_the_window_upwards_and_nothing_goes_for_a_while() -> None:
    slow = Direction(window_s=60, limits=DEFAULT_UP.limits)
    of = policy(value=10.0, up=slow, panic=Panic(window_s=6, threshold=2, hold_s=60))
    service = Service(of, replicas=1)
    service.run(30, lambda _: 5.0)

    burst = service.look(150)
    service.now_s += 7
    service.look(0)
    calm = service.run(70, lambda _: 1.0)

    assert (burst.replicas, burst.history.panic_until_s) == (15, NOW + 90), "the mean of 5 and 150 is far above 20"
    assert service.told[7].message.endswith("a burst; not down for 53 s")
    assert calm == [15] * 11 + [1] * 3, "60 s after the mean of the window was last so high"


def test_a_burst_of_one_window_that_is_no_burst_on_average_is_none() -> None:
    of = policy(value=10.0, panic=Panic(window_s=60, threshold=2))
    service = Service(of, replicas=1)
    service.run(60, lambda _: 1.0)

    verdict = service.look(50)

    assert verdict.history.panic_until_s is None


def test_a_burst_does_not_break_a_direction_that_is_disabled() -> None:
    of = policy(up=replace(DEFAULT_UP, select="Disabled"), panic=Panic())

    verdict = decide(signal(1, 100), of, LONG_AGO, NOW)

    assert (verdict.replicas, verdict.reason, verdict.message.split("; ")[-1]) == (
        1,
        "RateLimited",
        "scaling up is disabled",
    )


def test_unknown_demand_keeps_what_there_is_and_says_what_is_unknown() -> None:
    verdict = decide(signal(3, num_failures=2), policy(), LONG_AGO, NOW)

    assert (verdict.replicas, verdict.reason, verdict.is_active) == (3, "DemandUnknown", True)
    assert verdict.message == "demand unknown; stays at 3 replicas"


def test_a_latency_that_nobody_had_reason_to_measure_asks_for_nothing_and_blocks_nothing() -> None:
    targets = (Target(metric="Demand", value=1), Target(metric="TimeToFirstToken", value=0.5))
    absent = {"readings": {"Demand": 1.0}}

    idle = decide(signal(4, idle=frozenset({"TimeToFirstToken"}), **absent), policy(targets=targets), LONG_AGO, NOW)
    unknown = decide(signal(4, **absent), policy(targets=targets), LONG_AGO, NOW)

    assert (idle.replicas, idle.reason) == (1, "BelowTarget")
    assert (unknown.replicas, unknown.reason) == (4, "DemandUnknown")
    assert unknown.message.endswith("time to first token unknown; not down from 4 replicas")


def test_a_process_that_begins_later_does_not_take_an_old_service_for_idle() -> None:
    """Nobody told it when the service was last active: a whole cooldown passes first."""
    begun = History.begin(created_s=NOW - 1e6, replicas=2, now_s=NOW)
    of = policy(min_replicas=0, cooldown_s=300, down=replace(FREE, window_s=300))

    at_once = decide(signal(2, 0), of, begun, NOW)
    later = decide(signal(2, 0), of, at_once.history, NOW + 300)
    over = decide(signal(2, 0), of, later.history, NOW + 301)

    assert (at_once.replicas, later.replicas, over.replicas) == (2, 1, 0)


def test_a_time_of_activity_from_status_may_be_half_a_minute_old() -> None:
    begun = History.begin(created_s=NOW - 1e6, replicas=1, now_s=NOW, last_active_s=NOW - 310)
    of = policy(min_replicas=0, cooldown_s=300)

    at_once = decide(signal(1, 0), of, begun, NOW)
    later = decide(signal(1, 0), of, at_once.history, NOW + 61)

    assert (at_once.replicas, at_once.reason, later.replicas) == (1, "CoolingDown", 0)


def test_a_service_that_was_made_just_now_has_keda_s_initial_cooldown_and_no_other() -> None:
    begun = History.begin(created_s=NOW - 5, replicas=1, now_s=NOW)
    of = policy(min_replicas=0, cooldown_s=300, initial_cooldown_s=20)

    before = decide(signal(1, 0), of, begun, NOW + 15)
    after = decide(signal(1, 0), of, before.history, NOW + 16)

    assert (before.replicas, after.replicas) == (1, 0)
    assert after.message == "demand was never above 0, and the initial cooldown is over"


def test_idle_replicas_say_when_they_may_sleep() -> None:
    of = policy(min_replicas=0, cooldown_s=300)

    verdict = decide(signal(1, 0), of, replace(LONG_AGO, last_active_s=NOW - 100), NOW)

    assert (verdict.reason, verdict.message.split("; ")[1:]) == (
        "CoolingDown",
        ["1 replica stays awake", "idle, may sleep in 200 s"],
    )


def test_a_clock_that_is_set_back_holds_nothing_for_as_long_as_it_was_wrong() -> None:
    of = policy(min_replicas=0, cooldown_s=300, down=replace(FREE, window_s=300))
    wrong = decide(signal(9, 9), of, History(created_s=NOW - 1e6), NOW + 1e8)

    back = decide(signal(9, 0), of, wrong.history, NOW)
    later = decide(signal(9, 0), of, back.history, NOW + 299)
    over = decide(signal(9, 0), of, later.history, NOW + 301)

    assert (back.replicas, later.replicas, over.replicas) == (9, 9, 0)


@pytest.mark.parametrize(("value", "replicas"), [(float("nan"), 4), (float("inf"), 4), (-3.0, 1)])
def test_what_is_no_number_is_unknown_and_what_is_negative_is_nothing(value: float, replicas: int) -> None:
    demand = decide(signal(4, value), policy(), LONG_AGO, NOW)
    ratio = decide(signal(4, readings={"QueueWait": value, "Demand": 1.0}), policy("QueueWait", 0.5), LONG_AGO, NOW)

    assert (demand.replicas, ratio.replicas) == (replicas, replicas)


def test_a_ratio_over_no_ready_replica_changes_nothing() -> None:
    of = policy("QueueWait", 0.5)

    verdict = decide(signal(4, readings={"QueueWait": 2.0, "Demand": 9.0}, ready=0), of, LONG_AGO, NOW)

    assert (verdict.replicas, verdict.message) == (4, "queue wait 2000 ms against 500 ms, but no replica is ready")


def test_what_some_routers_say_while_others_are_silent_wakes_and_adds_and_takes_nothing_away() -> None:
    """A request at the only router that answers is no less a request."""
    of = policy(min_replicas=0)
    some = {"num_failures": 1, "readings": {"Demand": 3.0}}

    woken = decide(signal(0, **some), of, LONG_AGO, NOW)
    more = decide(signal(2, **some), of, LONG_AGO, NOW)
    fewer = decide(signal(5, **some), of, LONG_AGO, NOW)

    assert (woken.replicas, woken.reason, woken.message) == (1, "Activated", "demand 3 is above 0; starts 1 replica")
    assert (more.replicas, fewer.replicas, fewer.reason) == (3, 5, "DemandUnknown")
