"""choose() on made-up snapshots."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_router.scoring import BLOCK_WAIT_MS, Candidate, RouteRequest, choose

REQUEST = RouteRequest(model="m", num_tokens=1000, affinity_key=7)


def precise(endpoint_id, **fields):
    return Candidate(endpoint_id=endpoint_id, **{"knowledge": "precise", **fields})


def pick(*candidates, request=REQUEST, seed=0):
    return choose(request, candidates, random.Random(seed))


def test_the_longest_prefix_wins_between_equals():
    choice = pick(precise("a", matched_tokens=100), precise("b", matched_tokens=900), precise("c"))

    assert (choice.endpoint_id, choice.level, choice.matched_tokens) == ("b", "precise", 900)
    assert choice.reason == "holds the longest prefix, 900 of 1000 tokens"


def test_waiting_work_outweighs_a_prefix_only_when_it_costs_more():
    near, far = {"matched_tokens": 900, "promised_tokens": 1600}, {"matched_tokens": 900, "promised_tokens": 2400}

    stays = pick(precise("cached", **near), precise("idle"))
    leaves = pick(precise("cached", **far), precise("idle"))

    assert (stays.endpoint_id, leaves.endpoint_id) == ("cached", "idle")
    assert leaves.reason == "holds 0 of 1000 tokens; the endpoint with 900 costs more to wait for"


def test_a_slower_worker_gets_the_cold_prompt_only_when_the_fast_one_is_busy():
    slow = precise("slow", ms_per_token=0.4)

    assert pick(precise("fast"), slow).endpoint_id == "fast"
    assert pick(precise("fast", promised_tokens=8000), slow).endpoint_id == "slow"


def test_a_worker_that_cannot_hold_the_prompt_costs_the_wait_for_blocks():
    choice = pick(precise("full", matched_tokens=600, free_tokens=100), precise("roomy", free_tokens=5000))

    assert choice.endpoint_id == "roomy"
    assert choice.scores[0].blocks_ms == pytest.approx(BLOCK_WAIT_MS * 1.75)


def test_unfit_endpoints_are_dropped_with_the_reason():
    request = RouteRequest(model="m", num_tokens=10, excluded=frozenset({"tried"}))
    unfit = [precise("down", ready=False), precise("leaving", draining=True), precise("tried")]

    nothing = pick(*unfit, request=request)
    something = pick(*unfit, precise("good"), request=request)

    assert nothing.endpoint_id is None
    assert nothing.reason == "no endpoint left: down not ready, leaving draining, tried tried before"
    assert something.endpoint_id == "good"
    assert [score.dropped for score in something.scores] == ["not ready", "draining", "tried before", None]


def test_a_silent_endpoint_is_avoided_but_better_than_none():
    assert pick(precise("silent", silent=True, matched_tokens=999), precise("b")).endpoint_id == "b"
    assert pick(precise("silent", silent=True)).endpoint_id == "silent"


def test_an_endpoint_over_its_share_of_the_load_is_left_alone_whatever_it_holds():
    hot = precise("hot", matched_tokens=999, load=40, ms_per_token=10.0)

    choice = pick(hot, precise("b", load=10, ms_per_token=10.0))

    assert choice.endpoint_id == "b"
    assert choice.scores[0].dropped == "over its share of the load"


def test_few_requests_are_no_hot_spot():
    assert pick(precise("a", matched_tokens=900, load=7), precise("b")).endpoint_id == "a"


def test_equal_costs_go_to_whom_was_given_less_and_then_to_either():
    less = pick(precise("a", recent_ms=50.0), precise("b", recent_ms=10.0))
    either = {pick(precise("a"), precise("b"), seed=seed).endpoint_id for seed in range(20)}

    assert less.endpoint_id == "b"
    assert either == {"a", "b"}


def test_without_events_what_was_sent_before_decides():
    sent = Candidate(endpoint_id="a", knowledge="approximate", matched_tokens=500)

    choice = pick(sent, Candidate(endpoint_id="b", knowledge="approximate"))

    assert (choice.endpoint_id, choice.level) == ("a", "approximate")


def test_where_nobody_is_known_to_hold_it_all_routers_agree_by_hash():
    cold = [Candidate(endpoint_id=name) for name in ("a", "b", "c")]
    keys = [RouteRequest(model="m", num_tokens=100, affinity_key=key) for key in range(300)]

    first = [choose(key, cold, random.Random(1)).endpoint_id for key in keys]
    second = [choose(key, cold, random.Random(2)).endpoint_id for key in keys]
    without_c = [choose(key, cold[:2], random.Random(3)).endpoint_id for key in keys]

    assert first == second
    assert min(first.count(name) for name in "abc") > 60
    assert all(after == before for before, after in zip(first, without_c, strict=True) if before != "c")


def test_a_prompt_that_cannot_be_read_goes_to_the_least_load():
    request = RouteRequest(model="m")

    choice = pick(Candidate(endpoint_id="a", load=3), Candidate(endpoint_id="b", load=1), request=request)

    assert (choice.endpoint_id, choice.level) == ("b", "least_load")


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        endpoint_id=st.text("abcdef", min_size=1, max_size=3),
        ready=st.booleans(),
        draining=st.booleans(),
        silent=st.booleans(),
        knowledge=st.sampled_from(["precise", "approximate", "none"]),
        matched_tokens=st.integers(0, 2000),
        load=st.integers(0, 100),
        promised_tokens=st.integers(0, 10_000),
        free_tokens=st.none() | st.integers(0, 10_000),
    ),
    max_size=6,
    unique_by=lambda c: c.endpoint_id,
)
REQUESTS = st.builds(
    RouteRequest,
    model=st.just("m"),
    num_tokens=st.none() | st.integers(0, 2000),
    affinity_key=st.none() | st.integers(0, 2**64 - 1),
    excluded=st.frozensets(st.text("abcdef", min_size=1, max_size=3), max_size=3),
)


@given(REQUESTS, CANDIDATES, st.integers(0, 10))
def test_a_fit_endpoint_is_always_found_and_an_unfit_one_never(request, candidates, seed):
    fit = {c.endpoint_id for c in candidates if c.ready and not c.draining and c.endpoint_id not in request.excluded}

    choice = choose(request, candidates, random.Random(seed))

    assert (choice.endpoint_id in fit) if fit else choice.endpoint_id is None
    assert len(choice.scores) == len(candidates)
    assert choice.endpoint_id not in {score.endpoint_id for score in choice.scores if score.dropped}
