"""A whole simulated service: requests, replicas that come and go, figures that add up."""

import random
from dataclasses import replace

import pytest

from quire_cli.simulate.costs import StepCost, WorkerShape
from quire_cli.simulate.exact_worker import ExactWorker, prompt_of
from quire_cli.simulate.fit import Measured, fit, predicted_s
from quire_cli.simulate.fleet import ColdStart
from quire_cli.simulate.job import Told
from quire_cli.simulate.loads import KINDS, Kind, Load, generate
from quire_cli.simulate.outcome import Objective
from quire_cli.simulate.policies import keda
from quire_cli.simulate.request import Request
from quire_cli.simulate.run import Outcome, Plan, fixed, shares_prompts, simulate
from quire_cli.simulate.scaler import Scaling
from quire_contract.router_settings import AdmissionSettings
from quire_operator.autoscale.policy import Policy, Target

COST = StepCost(
    overhead_s=0.001, row_s=4e-6, weights_s=0.006, token_s=2.7e-5, kv_s=5e-8, pair_s=1.5e-9, request_s=0.004
)
SHAPE = WorkerShape(kv_blocks=8000, max_num_seqs=32, max_model_len=8192)
LOAD = Load(kind="bursty", duration_s=900, rate=3, prompt=600, output=300, burst_s=120, seed=7)


def demand(target: float, least: int, most: int) -> Scaling:
    policy = Policy(
        min_replicas=least,
        max_replicas=most,
        targets=(Target(metric="Demand", value=target),),
        cooldown_s=60.0,
    )
    return Scaling(name=f"demand {target:g}", policy=lambda capacity: policy)


def run(scaling: Scaling, replicas: int, load: Load = LOAD, shape: WorkerShape = SHAPE) -> Outcome:
    plan = Plan(
        shape=shape,
        cost=COST,
        rules=AdmissionSettings(),
        cold_start=ColdStart(median_s=45),
        replicas=replicas,
        objective=Objective(),
        price_per_hour=3.0,
    )
    return simulate(plan, scaling, generate(load))


def test_the_same_seed_gives_the_same_outcome() -> None:
    first, second = run(demand(8, 1, 6), 1), run(demand(8, 1, 6), 1)

    assert first == second


def test_another_seed_gives_another_load() -> None:
    other = Load(kind="bursty", duration_s=60, rate=4, seed=8)

    assert list(generate(other)) != list(generate(Load(kind="bursty", duration_s=60, rate=4, seed=9)))


def test_every_request_ends_or_is_dropped_and_replicas_cost_what_they_last() -> None:
    found = run(fixed(3), 3)

    summary = found.summary
    assert summary.requests == sum(point.arrivals for point in found.points)
    assert summary.dropped == 0
    assert summary.requests_per_s * summary.duration_s == pytest.approx(summary.requests)
    assert summary.replica_hours == pytest.approx(3 * summary.duration_s / 3600)
    assert summary.cost == pytest.approx(3.0 * summary.replica_hours)


def test_replicas_follow_demand_and_pass_the_cold_start_before_they_serve() -> None:
    found = run(demand(4, 1, 6), 1)

    assert found.summary.starts > 0
    assert 1 < found.summary.replicas_most <= 7  # one that drains may still be there
    assert found.summary.replicas_mean < found.summary.replicas_most
    assert any(point.ready < point.wanted for point in found.points)


def test_the_first_request_wakes_a_service_at_zero_and_nobody_is_lost() -> None:
    found = run(demand(8, 0, 4), 0, Load(kind="poisson", duration_s=120, rate=1, prompt=200, output=50, seed=1))

    assert found.summary.dropped == 0
    assert found.summary.requests_per_s * found.summary.duration_s == pytest.approx(found.summary.requests)
    assert 30 < found.summary.ttft.p99 < 70


def test_who_waited_longer_for_the_first_worker_than_one_may_for_room_is_served_when_it_comes() -> None:
    plan = Plan(
        shape=SHAPE,
        cost=COST,
        rules=AdmissionSettings(queue_timeout_s=60.0, no_endpoint_timeout_s=120.0),
        cold_start=ColdStart(median_s=90, spread=0.0),
        replicas=0,
        objective=Objective(),
        price_per_hour=3.0,
    )
    requests = list(generate(Load(kind="poisson", duration_s=20, rate=1, prompt=200, output=50, seed=2)))

    patient = simulate(plan, demand(8, 0, 1), requests)
    hasty = simulate(replace(plan, rules=AdmissionSettings(no_endpoint_timeout_s=30.0)), demand(8, 0, 1), requests)

    assert patient.summary.dropped == 0
    assert hasty.summary.dropped == len(requests)


def test_keda_on_queue_length_sends_replicas_away_whose_batches_are_full() -> None:
    load = Load(kind="poisson", duration_s=1500, rate=2, prompt=600, output=600, seed=3)
    small = WorkerShape(kv_blocks=8000, max_num_seqs=6, max_model_len=8192)

    ours, theirs = run(demand(4, 1, 8), 3, load, small), run(keda(4, least=1, most=8), 3, load, small)

    assert theirs.summary.good_share < ours.summary.good_share
    assert theirs.summary.held > ours.summary.held


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_has_the_rate_and_the_lengths_that_were_asked_for(kind: Kind) -> None:
    load = Load(kind=kind, duration_s=86_400, rate=0.2, prompt=700, output=150, burstiness=0.3, seed=5)

    requests = list(generate(load))

    assert len(requests) / 86_400 == pytest.approx(0.2, rel=0.1)
    assert sum(one.prompt for one in requests) / len(requests) == pytest.approx(700, rel=0.1)
    assert sum(one.output for one in requests) / len(requests) == pytest.approx(150, rel=0.1)
    assert all(one.chain[-1][1] == one.prompt and one.prompt + one.output <= 8192 for one in requests)


def test_a_later_turn_begins_with_the_earlier_one_and_its_answer() -> None:
    requests = list(generate(Load(kind="poisson", duration_s=200, rate=1, prompt=100, output=20, reuse=0.7, seed=2)))
    by_stream: dict[str, list[Request]] = {}
    for one in requests:
        by_stream.setdefault(one.chain[-1][0], []).append(one)
    earlier, later = next(turns for turns in by_stream.values() if len(turns) > 1)[:2]

    assert later.prompt > earlier.prompt + earlier.output
    assert prompt_of(later.chain)[: earlier.prompt] == prompt_of(earlier.chain)
    assert shares_prompts(requests)


def test_the_exact_worker_leaves_no_block_behind() -> None:
    now_s = 0.0
    told = Told(first=lambda request, at_s: None, done=lambda request, at_s: None)
    worker = ExactWorker(0, WorkerShape(kv_blocks=120, max_num_seqs=8, max_model_len=1024), COST, told, lambda: now_s)
    rng = random.Random(4)

    for number in range(12):
        prompt = rng.randrange(20, 400)
        worker.add(Request(number=number, at_s=0.0, prompt=prompt, output=90, chain=((f"r{number}", prompt),)), now_s)
    while worker.load:
        now_s = worker.due_s
        worker.advance(now_s)

    worker.scheduler.check()
    assert worker.kv_used == 0
    assert told.num_preemptions > 0


def test_a_cost_that_made_the_times_is_found_from_them() -> None:
    shapes = [
        (1, 1, 64.0, 0.0, 0),
        (4, 4, 256.0, 0.0, 0),
        (16, 16, 1e3, 0.0, 0),
        (32, 32, 4e3, 0.0, 0),
        (8, 8, 2e4, 0.0, 0),
    ]
    shapes += [(1, length, 0.0, length**2 / 2, 1) for length in (16, 64, 256, 1024, 2000)]
    true = StepCost(
        overhead_s=0.002, row_s=3e-4, weights_s=16 * 3e-4, token_s=3e-4, kv_s=2e-7, pair_s=3e-8, request_s=0.006
    )
    points = [
        Measured(
            name=str(shape), rows=shape[0], tokens=shape[1], kv_tokens=shape[2], pairs=shape[3], requests=shape[4],
            time_s=true.step_s(*shape[:4]) + true.request_s * shape[4],
        )
        for shape in shapes
    ]  # fmt: skip

    found, errors = fit(points)

    assert max(map(abs, errors.values())) < 0.03
    unseen = Measured(name="unseen", rows=12, tokens=12, kv_tokens=5e3, time_s=true.step_s(12, 12, 5e3, 0))
    assert predicted_s(found, unseen) == pytest.approx(unseen.time_s, rel=0.05)
