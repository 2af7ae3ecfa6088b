"""What holds of every decision, whatever is read and configured."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.history import Change, History, Recommendation
from quire_operator.autoscale.outlook import Learned
from quire_operator.autoscale.policy import (
    Direction,
    Fallback,
    Limit,
    Metric,
    Panic,
    Policy,
    Schedule,
    Target,
)
from quire_operator.autoscale.schedule import bounds_at
from quire_operator.autoscale.signal import Signal
from tests.operator.autoscale.worlds import NOW

EXAMPLES = 40
METRICS: list[Metric] = ["Demand", "QueueLength", "QueueWait", "TimeToFirstToken", "InterTokenLatency", "KvUse"]
numbers = st.integers(0, 40)
directions = st.builds(
    Direction,
    window_s=st.sampled_from([0.0, 30.0, 300.0]),
    limits=st.lists(
        st.builds(
            Limit,
            kind=st.sampled_from(["Pods", "Percent"]),
            value=st.integers(1, 200),
            period_s=st.sampled_from([15, 60]),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    select=st.sampled_from(["Max", "Min", "Disabled"]),
    tolerance=st.sampled_from([0.0, 0.1, 0.5]),
)
schedules = st.builds(
    Schedule,
    name=st.just("some"),
    time_zone=st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Auckland"]),
    weekdays=st.frozensets(st.integers(0, 6)),
    start_minute=st.integers(0, 1439),
    end_minute=st.integers(0, 1439),
    min_replicas=st.none() | numbers,
    max_replicas=st.none() | st.integers(1, 40),
)
targets = st.lists(
    st.builds(Target, metric=st.sampled_from(METRICS), value=st.integers(1, 20).map(float)),
    max_size=3,
    unique_by=lambda target: target.metric,
).map(tuple)
fallbacks = st.builds(
    Fallback,
    failure_threshold=st.integers(0, 4),
    replicas=numbers,
    behavior=st.sampled_from(["Static", "CurrentReplicas", "CurrentReplicasIfHigher", "CurrentReplicasIfLower"]),
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any that validation lets through."""
    most = draw(st.integers(1, 40))
    return Policy(
        min_replicas=draw(st.integers(0, most)),
        max_replicas=most,
        targets=draw(targets),
        up=draw(directions),
        down=draw(directions),
        activation=draw(st.sampled_from([0.0, 5.0])),
        cooldown_s=draw(st.sampled_from([0.0, 60.0, 300.0])),
        panic=draw(st.none() | st.just(Panic())),
        fallback=draw(st.none() | fallbacks),
        schedules=tuple(draw(st.lists(schedules, max_size=2))),
        max_kv_fill=draw(st.sampled_from([0.0, 0.8])),
        looks_ahead=draw(st.booleans()),
        window_follows_start=draw(st.booleans()),
    )


@st.composite
def signals(draw: st.DrawFn) -> Signal:
    """Any reading; demand is known or not, apart from the others."""
    replicas = draw(numbers)
    ready = draw(st.integers(0, replicas))
    failures = draw(st.integers(0, 6))
    readings = draw(st.dictionaries(st.sampled_from(METRICS), st.floats(0, 1000), max_size=6))
    if not failures:
        readings["Demand"] = draw(st.floats(0, 1000))
    return Signal(
        readings=readings,
        idle=frozenset(draw(st.sets(st.sampled_from(METRICS[2:])))) - set(readings),
        num_failures=failures,
        replicas=replicas,
        ready=ready,
        loading=draw(st.integers(0, replicas - ready)),
        capacity=draw(st.none() | st.integers(1, 64)),
        kv_used_tokens=draw(st.none() | st.integers(0, 10**6)),
        kv_tokens_per_replica=draw(st.none() | st.integers(1, 10**5)),
        is_forced_active=draw(st.booleans()),
        arrivals_per_s=draw(st.none() | st.floats(0, 50)),
        start_s=draw(st.none() | st.floats(1, 300)),
    )


ages = st.floats(0, 400)
learned = st.builds(
    Learned,
    at_s=st.floats(0, 70).map(lambda ago: NOW - ago),
    demand=st.floats(0, 1000),
    running_s=st.floats(0, 1e5),
    finished=st.floats(0, 1e4),
    kv_s=st.floats(0, 1e8),
    service_s=st.none() | st.floats(0.01, 300),
    kv_tokens=st.none() | st.floats(1, 1e5),
)
histories = st.builds(
    History,
    created_s=st.just(NOW - 10_000),
    last_active_s=st.none() | ages.map(lambda ago: NOW - ago),
    recommendations=st.lists(st.builds(Recommendation, at_s=ages.map(lambda ago: NOW - ago), replicas=numbers)).map(
        tuple
    ),
    ups=st.lists(st.builds(Change, at_s=ages.map(lambda ago: NOW - ago), amount=st.integers(1, 9)), max_size=4).map(
        tuple
    ),
    downs=st.lists(st.builds(Change, at_s=ages.map(lambda ago: NOW - ago), amount=st.integers(1, 9)), max_size=4).map(
        tuple
    ),
    demands=st.lists(st.tuples(ages.map(lambda ago: NOW - ago), st.floats(0, 1000)), max_size=4).map(tuple),
    panic_until_s=st.none() | ages.map(lambda ago: NOW + 60 - ago),
    loading_since_s=st.none() | ages.map(lambda ago: NOW - 2 * ago),
    learned=st.none() | learned,
    start_s=st.none() | st.floats(1, 300),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(signal=signals(), policy=policies(), history=histories)
def test_bounds_always_hold_but_for_a_service_that_sleeps(signal: Signal, policy: Policy, history: History) -> None:
    bounds = bounds_at(policy, NOW)

    verdict = decide(signal, policy, history, NOW)

    assert bounds.fewest <= verdict.replicas <= bounds.most
    assert verdict.message


@settings(max_examples=EXAMPLES, deadline=None)
@given(signal=signals(), policy=policies(), history=histories)
def test_the_same_arguments_give_the_same_answer(signal: Signal, policy: Policy, history: History) -> None:
    assert decide(signal, policy, history, NOW) == decide(signal, policy, history, NOW)


@settings(max_examples=EXAMPLES, deadline=None)
@given(signal=signals(), policy=policies(), history=histories)
def test_the_last_replica_goes_by_one_way_only(signal: Signal, policy: Policy, history: History) -> None:
    verdict = decide(signal, policy, history, NOW)

    if signal.replicas and not verdict.replicas:
        assert verdict.reason == "ScaledToZero"
        assert (signal.num_failures, signal.is_forced_active) == (0, False)
        assert signal.readings["Demand"] <= policy.activation
        assert history.last_active_s is None or NOW - history.last_active_s > policy.cooldown_s
        assert bounds_at(policy, NOW).fewest == 0


@settings(max_examples=EXAMPLES, deadline=None)
@given(signal=signals(), policy=policies(), history=histories)
def test_nothing_goes_while_demand_is_unknown_unless_bounds_or_a_fallback_say_so(
    signal: Signal, policy: Policy, history: History
) -> None:
    blind = replace(signal, num_failures=signal.num_failures or 1)
    explicit = policy.fallback is not None and policy.fallback.behavior in ("Static", "CurrentReplicasIfLower")
    kept = min(signal.replicas, bounds_at(policy, NOW).most)

    verdict = decide(blind, policy, history, NOW)

    assert verdict.replicas >= (min(1, kept) if explicit else kept)


@settings(max_examples=EXAMPLES, deadline=None)
@given(signal=signals(), policy=policies(), history=histories, more=st.floats(0, 500))
def test_more_demand_never_means_fewer_replicas(signal: Signal, policy: Policy, history: History, more: float) -> None:
    known = replace(signal, num_failures=0, readings={"Demand": 0.0, **signal.readings})
    busier = replace(known, readings={**known.readings, "Demand": known.readings["Demand"] + more})

    fewer, larger = decide(known, policy, history, NOW), decide(busier, policy, history, NOW)

    assert larger.replicas >= fewer.replicas


@settings(max_examples=EXAMPLES, deadline=None)
@given(signal=signals(), policy=policies(), window=st.sampled_from([30.0, 300.0]), after=st.floats(0, 29))
def test_a_process_that_has_just_begun_takes_away_nothing_but_what_bounds_forbid(
    signal: Signal, policy: Policy, window: float, after: float
) -> None:
    careful = replace(policy, down=replace(policy.down, window_s=window), cooldown_s=60.0)
    begun = History.begin(created_s=NOW - 10_000, replicas=signal.replicas, now_s=NOW)

    verdict = decide(signal, careful, begun, NOW + after)

    assert verdict.replicas >= min(signal.replicas, bounds_at(careful, NOW + after).most)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    policy=policies(),
    history=histories,
    readings=st.lists(st.tuples(st.floats(0, 200), st.integers(0, 2)), max_size=12),
)
def test_history_stays_small_and_a_steady_demand_comes_to_rest(
    policy: Policy, history: History, readings: list[tuple[float, int]]
) -> None:
    now_s, replicas = NOW, policy.min_replicas
    for demand, failures in [*readings, *[(20.0, 0)] * 130]:
        signal = Signal(
            readings={"Demand": demand}, num_failures=failures, replicas=replicas, ready=replicas, capacity=8
        )
        verdict = decide(signal, policy, history, now_s)
        history, replicas, now_s = verdict.history, verdict.replicas, now_s + 30

    assert len(history.recommendations) <= 300 / 30 + 1
    assert len(history.ups) + len(history.downs) + len(history.demands) <= 20
    assert verdict.replicas == signal.replicas or policy.schedules
