"""A worker that has just become ready takes traffic gradually, and nothing waits for that."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import ChoiceSettings, RouterSettingsEntry, settings_problem
from quire_router.endpoint_pool import EndpointPool
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.metrics import RouterMetrics
from quire_router.picker import Picker
from quire_router.policies import choose_by
from quire_router.revision_stats import RevisionStats
from quire_router.scoring import Candidate, RouteRequest, choose
from quire_router.warmup import LEAST_SHARE, Warmup, share_of

REQUEST = RouteRequest(model="m", num_tokens=100, affinity_key=7, session_key=9)
POLICIES = ("kv_aware", "round_robin", "least_load", "consistent_hash", "session_affinity")


def pick(*candidates, policy="kv_aware", request=REQUEST):
    return choose_by(policy, request, candidates, random.Random(0))


def test_the_share_grows_evenly_from_a_tenth_to_one():
    shares = [share_of(100.0, 100.0 + passed_s, 10.0) for passed_s in (0.0, 0.5, 2.5, 5.0, 9.9, 10.0, 1e9)]

    assert shares == pytest.approx([LEAST_SHARE, LEAST_SHARE, 0.25, 0.5, 0.99, 1.0, 1.0])
    assert share_of(100.0, 100.0, 0.0) == 1.0


@pytest.mark.parametrize("policy", POLICIES)
def test_beyond_its_share_of_the_warm_ones_load_a_new_worker_gets_nothing(policy):
    warm = [Candidate(endpoint_id=name, load=20, last_turn=9) for name in "ab"]

    chosen = {
        load: pick(*warm, Candidate(endpoint_id="new", load=load, warmth=0.2), policy=policy) for load in (3, 4, 5)
    }

    dropped = {load: choice.scores[2].dropped for load, choice in chosen.items()}
    assert dropped == {3: None, 4: dropped[5], 5: "warming up: has its 20% of the others' load"}
    assert all(chosen[load].endpoint_id in "ab" for load in (4, 5))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_new_worker_takes_all_that_comes_once_no_warm_one_could_begin_with_it(policy):
    new = Candidate(endpoint_id="new", load=5, warmth=0.1)
    hindered = [
        Candidate(endpoint_id="a", load=6, is_busy=True),
        Candidate(endpoint_id="b", load=6, free_tokens=99),
    ]

    choices = [pick(*hindered, new, policy=policy), pick(new, policy=policy)]

    assert [choice.scores[-1].dropped for choice in choices] == [None, None]


def test_where_all_are_new_nobody_is_held_back():
    new = [Candidate(endpoint_id=name, load=50, warmth=0.1) for name in "abc"]

    choice = pick(*new)

    assert [score.dropped for score in choice.scores] == [None, None, None]


@given(
    st.lists(
        st.builds(
            dict,
            load=st.integers(0, 40),
            warmth=st.sampled_from([0.1, 0.5, 1.0]),
            is_busy=st.booleans(),
            ready=st.booleans(),
            free_tokens=st.sampled_from([None, 0, 1000]),
        ),
        max_size=6,
    )
)
def test_warming_up_never_leaves_out_an_idle_worker_nor_the_last_that_can_answer(fields):
    snapshot = [Candidate(endpoint_id=str(number), **values) for number, values in enumerate(fields)]

    choice = choose(REQUEST, snapshot, random.Random(0))

    idle = [c.endpoint_id for c in snapshot if c.ready and c.load == 0]
    assert not [s for s in choice.scores if s.endpoint_id in idle and s.dropped]
    assert (choice.endpoint_id is None) == (not any(c.ready for c in snapshot))


def test_new_is_who_was_added_later_or_not_ready_at_first_or_began_a_new_life():
    known, added, loading, reborn, away = (Warmup() for _ in range(5))
    added.begin()
    loading.not_ready()
    for warmup in (known, added, loading, reborn, away):
        warmup.ready(100.0)
        warmup.ready(101.0)
    reborn.begin()
    away.not_ready()
    for warmup in (reborn, away):
        warmup.ready(200.0)

    begun_s = [warmup.since_s for warmup in (known, added, loading, reborn, away)]

    assert begun_s == [-float("inf"), 100.0, 100.0, 200.0, -float("inf")]


class Fleet:
    """Two warm workers, and a new one at 1000 s; requests stay where they are sent until `finish`."""

    def __init__(self, slow_start_s):
        self.now_s = 1000.0
        self.pool = EndpointPool(RevisionStats("boot"))
        entries = [EndpointEntry(id=i, url=f"http://{i}:1", models=["m"]) for i in ("a", "b", "new")]
        settings = RouterSettingsEntry(choice=ChoiceSettings(slow_start_s=slow_start_s))
        for known in (entries[:2], entries):
            self.pool.apply(RouterConfig(models=[ModelEntry(name="m")], endpoints=known, settings=settings))
        for endpoint in self.pool:
            endpoint.mark_ready(self.now_s)
        self.picker = Picker(
            pool=self.pool,
            index=KvIndex(),
            sent=SentIndex(),
            reader=None,
            metrics=RouterMetrics(),
            rng=random.Random(1),
            clock=lambda: self.now_s,
            wall_clock=lambda: 0.0,
        )

    def send(self):
        reservation, _ = self.picker.pick("r", "m", None, frozenset())
        reservation.take()
        return reservation.endpoint.id, reservation

    def steady(self, number):
        """The new one's part of `number` requests in flight, after each was replaced a few times."""
        flying = [self.send() for _ in range(number)]
        for _ in range(4 * number):
            flying.pop(0)[1].give_back()
            flying.append(self.send())
        part = [name for name, _ in flying].count("new")
        for _, reservation in flying:
            reservation.give_back()
        return part


def test_a_new_worker_of_three_comes_to_a_third_of_the_load_within_the_time():
    gradual, at_once = Fleet(10.0), Fleet(0.0)

    parts = []
    for passed_s in (0.0, 2.5, 5.0, 7.5, 10.0):
        gradual.now_s = 1000.0 + passed_s
        parts.append(gradual.steady(60))

    assert parts == [2, 6, 12, 16, 20]
    assert at_once.steady(60) == 20


def test_a_worker_whose_reports_say_that_its_batch_is_full_makes_no_new_one_wait():
    fleet = Fleet(10.0)
    full = {"running": 8, "waiting": 0, "free_blocks": 9, "total_blocks": 9, "uncached_tokens": 0, "max_num_seqs": 8}
    for name in "ab":
        report = LoadReport(pod=name, model="m", epoch="e", ts=0.0, kv_seq=0, **full)
        fleet.pool.get(name).take_report(report, fleet.now_s)

    sent = [fleet.send()[0] for _ in range(6)]

    assert sent == ["new"] * 6


async def test_the_router_says_who_warms_up_and_who_was_left_out_for_it(start_upstream, start_router):
    upstreams = [await start_upstream(name) for name in "ab"]
    entries = [EndpointEntry(id=u.id, url=u.url, models=["m"]) for u in upstreams]
    config = RouterConfig(
        models=[ModelEntry(name="m")],
        endpoints=entries[:1],
        settings=RouterSettingsEntry(choice=ChoiceSettings(slow_start_s=3600.0)),
    )
    router = await start_router(config)
    await router.until_ready(1)

    write_config(router.config_path, RouterConfig(models=config.models, endpoints=entries, settings=config.settings))
    await router.until_ready(2)
    async with router.get("/debug/route", params={"explain": "1"}) as answer:
        shown = {endpoint["id"]: endpoint["warming_up_s"] for endpoint in (await answer.json())["endpoints"]}

    assert shown["a"] is None
    assert 0 <= shown["b"] < 60


def test_a_negative_time_is_refused_by_name():
    problem = settings_problem(RouterSettingsEntry(choice=ChoiceSettings(slow_start_s=-1.0)))

    assert problem == "choice.slow_start_s: is -1.0; it must not be negative"
