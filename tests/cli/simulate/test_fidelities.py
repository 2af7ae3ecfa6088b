"""The fast worker and router against the engine's own scheduler and the router's own choice, in simulated time."""

import random

import pytest

from quire_cli.simulate.costs import StepCost, WorkerShape
from quire_cli.simulate.fast_router import FastRouter
from quire_cli.simulate.fast_worker import FastWorker
from quire_cli.simulate.fleet import ColdStart
from quire_cli.simulate.job import Told
from quire_cli.simulate.loads import Load, generate
from quire_cli.simulate.outcome import Objective, Summary
from quire_cli.simulate.prefix_cache import PrefixCache
from quire_cli.simulate.request import Request
from quire_cli.simulate.run import Fidelity, Plan, fixed, simulate
from quire_contract.router_settings import AdmissionSettings
from quire_router.scoring import DEFAULT_MS_PER_TOKEN, Candidate, RouteRequest, choose

COST = StepCost(
    overhead_s=0.001, row_s=4e-6, weights_s=0.006, token_s=2.7e-5, kv_s=5e-8, pair_s=1.5e-9, request_s=0.004
)
SHAPE = WorkerShape(kv_blocks=8000, max_num_seqs=64, max_model_len=8192, depth=2)
CPU_LIKE = StepCost(
    overhead_s=0.002, row_s=2e-4, weights_s=0.005, token_s=4e-4, kv_s=3e-7, pair_s=1e-8, request_s=0.004
)
CPU_SHAPE = WorkerShape(kv_blocks=700, max_num_seqs=16, max_model_len=2048, depth=1)
LOADS = {
    "light": (SHAPE, COST, Load(kind="poisson", duration_s=20, rate=6, prompt=800, output=120, seed=1)),
    "busy": (SHAPE, COST, Load(kind="poisson", duration_s=8, rate=30, prompt=800, output=120, seed=2)),
    "sharing": (
        SHAPE,
        COST,
        Load(
            kind="poisson", duration_s=12, rate=12, prompt=900, output=120, reuse=0.6, prefix_groups=5,
            prefix_tokens=400, seed=3,
        ),
    ),
    "long prompts": (SHAPE, COST, Load(kind="poisson", duration_s=20, rate=4, prompt=3500, output=60, seed=4)),
    "short of KV": (
        CPU_SHAPE,
        CPU_LIKE,
        Load(kind="poisson", duration_s=60, rate=1.6, prompt=500, output=250, max_len=2000, seed=5),
    ),
}  # fmt: skip


def run(shape: WorkerShape, cost: StepCost, load: Load, fidelity: Fidelity) -> Summary:
    plan = Plan(
        shape=shape,
        cost=cost,
        rules=AdmissionSettings(),
        cold_start=ColdStart(median_s=60),
        replicas=2,
        objective=Objective(),
        price_per_hour=1.0,
        fidelity=fidelity,
    )
    return simulate(plan, fixed(2), generate(load)).summary


@pytest.mark.parametrize("name", LOADS)
def test_runs_of_steps_tell_what_single_steps_tell(name: str) -> None:
    shape, cost, load = LOADS[name]

    fast, exact = run(shape, cost, load, "fast"), run(shape, cost, load, "exact")

    assert (fast.requests, fast.output_tokens, fast.dropped) == (exact.requests, exact.output_tokens, 0)
    assert fast.ttft.mean == pytest.approx(exact.ttft.mean, rel=0.12)
    assert fast.ttft.p95 == pytest.approx(exact.ttft.p95, rel=0.20)
    assert fast.request_itl.mean == pytest.approx(exact.request_itl.mean, rel=0.06)
    assert fast.output_tokens_per_s == pytest.approx(exact.output_tokens_per_s, rel=0.03)
    assert fast.cached_share == pytest.approx(exact.cached_share, abs=0.03)


def loaded_router(rng: random.Random, number: int) -> FastRouter:
    """Workers in the middle of something, some of which hold beginnings of prompts."""
    router = FastRouter(AdmissionSettings(), seed=1, max_num_seqs=64, block_size=16)
    told = Told(first=lambda request, now_s: None, done=lambda request, now_s: None)
    for worker_number in range(number):
        worker = FastWorker(worker_number, SHAPE, COST, told, PrefixCache(worker_number, 16, router.index))
        router.join(worker, 0.0)
        for count in range(rng.randrange(8)):
            length = rng.randrange(50, 3000)
            chain = (
                (("g", 320), (f"s{rng.randrange(6)}", 320 + length)) if rng.random() < 0.5 else ((f"u{count}", length),)
            )
            worker.add(Request(number=0, at_s=0.0, prompt=chain[-1][1], output=200, chain=chain), 0.0)
        for _ in range(rng.randrange(6)):
            if worker.load:
                worker.advance(worker.due_s)
        router.changed(worker, 0.0)
    return router


@pytest.mark.parametrize("seed", range(60))
def test_the_fast_choice_is_one_that_the_router_may_make(seed: int) -> None:
    rng = random.Random(seed)
    router = loaded_router(rng, rng.choice((1, 2, 5, 20)))
    chain = (("g", 320), (f"s{rng.randrange(8)}", 320 + rng.randrange(10, 2000)))
    request = Request(number=1, at_s=0.0, prompt=chain[-1][1], output=10, chain=chain)
    snapshot = [candidate(router, worker, request) for worker in router.workers]
    wanted = RouteRequest(model="m", num_tokens=request.prompt, affinity_key=1)

    found = str(router.pick(request, 0.0).number)

    reachable = {choose(wanted, snapshot, random.Random(turn)).endpoint_id for turn in range(40)}
    assert found in reachable


def candidate(router: FastRouter, worker: FastWorker, request: Request) -> Candidate:
    matched = 0
    for name, end in request.chain:
        stop = router.index.get(name, {}).get(worker.number, 0)
        if stop <= matched:
            break
        matched = min(stop, end)
        if stop < end:
            break
    return Candidate(
        endpoint_id=str(worker.number),
        knowledge="precise",
        matched_tokens=min(matched, request.prompt - 1) // 16 * 16,
        load=worker.load,
        promised_tokens=worker.uncached_tokens,
        ms_per_token=DEFAULT_MS_PER_TOKEN,
        free_tokens=worker.kv_tokens - worker.kv_used,
    )
