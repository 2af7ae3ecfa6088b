"""Each policy on made-up snapshots; adapters, roles and sessions through the picker."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from quire_contract.load_report import LoadReport
from quire_contract.openai.requests import RoutingFields
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, ServiceEntry
from quire_router.endpoint_pool import EndpointPool
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.metrics import RouterMetrics
from quire_router.picker import Picker
from quire_router.policies import bounded_load, choose_by
from quire_router.prompts import PromptBlocks
from quire_router.revision_stats import RevisionStats
from quire_router.scoring import ADAPTER_LOAD_MS, ADAPTER_SWAP_MS, Candidate, RouteRequest
from quire_router.session import session_key
from quire_router.snapshots import ReadablePrompt

NAMES = ("a", "b", "c", "d")
ALL = ("kv_aware", "round_robin", "least_load", "consistent_hash", "session_affinity")


def pick(policy, *candidates, seed=0, **fields):
    request = RouteRequest(model="m", num_tokens=100, **fields)
    return choose_by(policy, request, candidates, random.Random(seed))


def placed(policy, keys, names=NAMES, field="affinity_key"):
    """Where each key goes on idle endpoints."""
    return [pick(policy, *(Candidate(endpoint_id=n) for n in names), seed=i, **{field: k}).endpoint_id for i, k in keys]


def test_round_robin_takes_whoever_was_chosen_longest_ago_whatever_it_holds():
    choice = pick(
        "round_robin",
        Candidate(endpoint_id="a", last_turn=3, matched_tokens=99, knowledge="precise"),
        Candidate(endpoint_id="b", last_turn=2, load=50),
        Candidate(endpoint_id="c", last_turn=1, ready=False),
    )

    assert (choice.endpoint_id, choice.level, choice.reason) == ("b", "round_robin", "was chosen longest ago")
    assert [score.dropped for score in choice.scores] == [None, None, "not ready"]


def test_least_load_counts_requests_and_then_work():
    busy = [Candidate(endpoint_id="a", load=2), Candidate(endpoint_id="b", load=1, promised_tokens=900)]

    fewest = pick("least_load", *busy)
    equal = pick("least_load", *busy, Candidate(endpoint_id="c", load=1, promised_tokens=100))

    assert (fewest.endpoint_id, fewest.level) == ("b", "least_load")
    assert equal.endpoint_id == "c"


@pytest.mark.parametrize(
    ("policy", "field"), [("consistent_hash", "affinity_key"), ("session_affinity", "session_key")]
)
def test_routers_agree_on_a_hash_and_an_endpoint_that_leaves_moves_only_its_own(policy, field):
    rng = random.Random(3)
    keys = [rng.getrandbits(64) for _ in range(400)]

    before = placed(policy, enumerate(keys), field=field)
    elsewhere = placed(policy, enumerate(keys, 1000), names=NAMES[::-1], field=field)
    after = placed(policy, enumerate(keys), names=NAMES[:3], field=field)

    assert before == elsewhere
    assert min(before.count(name) for name in NAMES) > 70
    assert all(new == old for old, new in zip(before, after, strict=True) if old != "d")


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_no_endpoint_gets_more_than_the_bound_and_the_walk_goes_on_by_hash(key, loads):
    candidates = [Candidate(endpoint_id=f"w{i}", load=load) for i, load in enumerate(loads)]
    idle = [Candidate(endpoint_id=c.endpoint_id) for c in candidates]
    order = []
    while idle:  # who comes first, who if that one is gone, ...
        order.append(pick("consistent_hash", *idle, affinity_key=key).endpoint_id)
        idle = [c for c in idle if c.endpoint_id != order[-1]]
    by_id = {c.endpoint_id: c.load for c in candidates}

    choice = pick("consistent_hash", *candidates, affinity_key=key)

    most = bounded_load(candidates)
    assert choice.endpoint_id == next(name for name in order if by_id[name] + 1 <= most)


def test_a_session_stays_until_its_endpoint_is_a_hot_spot():
    home = placed("session_affinity", [(0, 77)], field="session_key")[0]
    candidates = [Candidate(endpoint_id=n, load=7 * (n == home)) for n in NAMES]
    hot = [Candidate(endpoint_id=n, load=40 * (n == home)) for n in NAMES]

    stays, leaves = (pick("session_affinity", *those, session_key=77) for those in (candidates, hot))

    assert (stays.endpoint_id, stays.level) == (home, "session")
    assert leaves.endpoint_id != home


def test_without_a_session_or_a_beginning_the_next_best_policy_decides():
    held = Candidate(endpoint_id="a", knowledge="precise", matched_tokens=90)

    nameless = pick("session_affinity", held, Candidate(endpoint_id="b", knowledge="precise"))
    short = pick("consistent_hash", Candidate(endpoint_id="a", load=3), Candidate(endpoint_id="b"))

    assert (nameless.endpoint_id, nameless.level) == ("a", "precise")
    assert (short.endpoint_id, short.level) == ("b", "least_load")


@pytest.mark.parametrize("policy", ALL)
def test_every_policy_drops_the_unfit_and_says_why_nobody_is_left(policy):
    unfit = [
        Candidate(endpoint_id="down", ready=False),
        Candidate(endpoint_id="p", role="prefill"),
        Candidate(endpoint_id="tried"),
    ]
    fields = {"affinity_key": 5, "session_key": 6, "excluded": frozenset({"tried"})}

    nobody = pick(policy, *unfit, **fields)
    somebody = pick(policy, *unfit, Candidate(endpoint_id="d", role="decode"), **fields)
    not_generating = pick(policy, *unfit, generates=False, **fields)

    assert nobody.endpoint_id is None
    assert nobody.reason == "no endpoint left: down not ready, p only prefills, tried tried before"
    assert (somebody.endpoint_id, not_generating.endpoint_id) == ("d", "p")


def test_the_header_names_the_session_before_the_body_and_tenants_are_apart():
    fields = RoutingFields(model="m", prompt="x", user="u", prompt_cache_key="k")
    header = CIMultiDict({"X-Session-Id": "s"})
    keys = [
        session_key(header, fields, ""),
        session_key(header, RoutingFields(model="m", prompt="x"), ""),
        session_key(CIMultiDict(), fields, ""),
        session_key(CIMultiDict(), RoutingFields(model="m", prompt="x", user="u"), ""),
        session_key(CIMultiDict(), RoutingFields(model="m", prompt="x", user="u"), "tenant"),
        session_key(CIMultiDict(), RoutingFields(model="m", prompt="x"), ""),
    ]

    assert keys[0] == keys[1]
    assert len({*keys[1:5]}) == 4
    assert keys[5] is None


class World:
    """Three workers of a service, and a picker."""

    def __init__(self, policy="kv_aware", adapter=""):
        self.now_s = 100.0
        self.pool, self.metrics = EndpointPool(RevisionStats("boot")), RouterMetrics()
        entries = [EndpointEntry(id=f"w{i}", url=f"http://w{i}:1", models=["m"]) for i in range(3)]
        config = RouterConfig(
            models=[ModelEntry(name="m", service="ns/s", adapter=adapter)],
            endpoints=entries,
            services=[ServiceEntry(id="ns/s", policy=policy)],
        )
        self.pool.apply(config)
        for endpoint in self.pool:
            endpoint.mark_ready()
        self.picker = Picker(
            pool=self.pool,
            index=KvIndex(),
            sent=SentIndex(),
            reader=None,
            metrics=self.metrics,
            rng=random.Random(0),
            clock=lambda: self.now_s,
            wall_clock=lambda: self.now_s,
        )

    def pick(self, tried=frozenset(), session=None):
        blocks = PromptBlocks(num_tokens=5, block_tokens=16, hashes=[])
        return self.picker.pick("r", "m", ReadablePrompt(by_digest={}, text=blocks, session_key=session), tried)[1]

    def report(self, endpoint_id, adapters, max_adapters):
        report = LoadReport(
            pod=endpoint_id,
            model="m",
            epoch="e",
            ts=0.0,
            kv_seq=0,
            running=0,
            waiting=0,
            free_blocks=100,
            total_blocks=100,
            uncached_tokens=0,
            adapters=adapters,
            max_adapters=max_adapters,
        )
        self.pool.get(endpoint_id).take_report(report, self.now_s)


def test_the_services_policy_decides_and_is_shown():
    world = World("round_robin")

    chosen = [world.pick().endpoint_id for _ in range(6)]

    assert sorted(chosen[:3]) == ["w0", "w1", "w2"]
    assert chosen[3:] == chosen[:3]
    assert {(d.policy, d.choice.level) for d in world.picker.decisions} == {("round_robin", "round_robin")}
    assert b'quire_router_choices_total{level="round_robin",model="m"} 6.0' in world.metrics.render()


def test_an_adapter_is_asked_for_where_it_is_loaded_then_where_there_is_room():
    world = World(adapter="lora")
    world.report("w0", ["other", "more"], 2)
    world.report("w1", ["lora"], 2)
    world.report("w2", [], 2)

    loaded = world.pick()
    without = world.pick(tried=frozenset({"w1"}))

    assert loaded.endpoint_id == "w1"
    assert [score.adapter_ms for score in loaded.scores] == [ADAPTER_SWAP_MS, 0.0, ADAPTER_LOAD_MS]
    assert without.endpoint_id == "w2"


def test_a_burst_for_an_adapter_that_nobody_has_stays_together_while_it_is_loaded():
    world = World(adapter="lora")

    burst = [world.pick().endpoint_id for _ in range(4)]
    world.now_s += 10.0
    later = world.pick().scores

    assert len(set(burst)) == 1
    assert [score.adapter_ms for score in later] == [ADAPTER_LOAD_MS] * 3


def test_a_retry_counts_no_prefix_again():
    world = World()

    world.pick()
    world.pick(tried=frozenset({"w0"}))

    assert b'quire_router_prefix_tokens_total{model="m"} 5.0' in world.metrics.render()
