"""The short way of choosing against the long one: the same endpoint for the same reason, from the same state."""

import random
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint, Reservation
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.prompts import PromptBlocks
from quire_router.revision_stats import RevisionCounts, RevisionStats
from quire_router.scoring import Candidate, RouteRequest, choose
from quire_router.snapshots import ReadablePrompt, Snapshots
from quire_router.usual_choice import Columns, choose_usual

NOW_S = 1000.0
ROWS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 160, 800, 999]) | st.integers(0, 1200),
        st.integers(0, 12) | st.integers(0, 60),
        st.sampled_from([0, 0, 500]) | st.integers(0, 20_000),
        st.sampled_from([0.1, 0.1, 0.02, 3.0]),
        st.none() | st.sampled_from([0, 300, 10_000]),
        st.sampled_from([0.0, 0.0, 5.0, 80.0]),
    ),
    min_size=1,
    max_size=8,
)


@given(ROWS, st.integers(0, 1100), st.integers(0, 20))
def test_on_columns_the_choice_is_the_one_among_candidates(rows, num_tokens, seed):
    ids = [f"w{number}" for number in range(len(rows))]
    matched, loads, promised, speeds, free, recent = map(list, zip(*rows, strict=True))
    columns = Columns(ids, matched, loads, promised, free, speeds)
    snapshot = [
        Candidate(**{**fields_of(candidate), "recent_ms": lately})
        for candidate, lately in zip(columns.candidates(), recent, strict=True)
    ]

    picked = choose_usual("m", num_tokens, columns, recent.__getitem__, random.Random(seed))
    expected = choose(RouteRequest(model="m", num_tokens=num_tokens), snapshot, random.Random(seed))

    if picked is None:
        assert any(score.dropped == "over its share of the load" for score in expected.scores)
    else:
        assert ids[picked[0]] == picked[1].endpoint_id
        assert told(picked[1]) == told(expected)


def fields_of(candidate):
    return {name: getattr(candidate, name) for name in candidate.__struct_fields__}


def told(choice):
    """All that can be seen of a choice."""
    return (
        choice.endpoint_id, choice.level, choice.matched_tokens, choice.num_tokens, choice.reason, choice.scores
    )  # fmt: skip


STATES = st.lists(
    st.fixed_dictionaries(
        {
            "ready": st.sampled_from([True] * 9 + [False]),
            "draining": st.sampled_from([False] * 9 + [True]),
            "synced": st.sampled_from([True] * 9 + [False]),
            "digest": st.sampled_from(["d"] * 9 + [None]),
            "new_s": st.sampled_from([None] * 9 + [999.0]),
            "role": st.sampled_from(["both"] * 9 + ["prefill", "decode"]),
            "report": st.none() | st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 3000), st.sampled_from([0.0, 900.0])),
            "age_s": st.sampled_from([0.2] * 9 + [3.5]),
            "sent": st.lists(st.tuples(st.integers(0, 64), st.sampled_from([0.05, 0.5, 2.9])), max_size=5),
            "held": st.integers(0, 64),
        }
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip
HASHES = list(range(100, 164))


def pool_of(states):
    """The pool, the index and what was sent, as `states` say; an endpoint each."""
    pool, index, sent = EndpointPool(RevisionStats("boot")), KvIndex(), SentIndex()
    entries = [
        EndpointEntry(id=f"w{number}", url=f"http://w{number}:1", models=["m"], role=state["role"])
        for number, state in enumerate(states)
    ]
    pool.apply(RouterConfig(models=[ModelEntry(name="m")], endpoints=entries))
    for endpoint, state in zip(pool, states, strict=True):
        if state["new_s"] is not None:
            endpoint.warmup.begin()
        endpoint.mark_ready(state["new_s"] or 0.0)
        if state["report"] is not None:
            running, waiting, free, speed = state["report"]
            report = LoadReport(
                pod="p", model="m", epoch="e", ts=0.0, kv_seq=0, running=running, waiting=waiting, free_blocks=free,
                total_blocks=3000, uncached_tokens=7 * waiting, prefill_tokens_per_s=speed,
            )  # fmt: skip
            endpoint.take_report(report, NOW_S - state["age_s"])
        endpoint.ready, endpoint.draining = state["ready"], state["draining"]
        endpoint.synced, endpoint.digest = state["synced"], state["digest"]
        index.add(endpoint.id, HASHES[: state["held"]])
        for number, age_s in sorted(state["sent"], key=lambda one: -one[1]):
            sent.record(endpoint.id, HASHES[:number], NOW_S - age_s)
            Reservation(endpoint, 16 * number, NOW_S - age_s).take()
    return pool, index, sent


@given(STATES, st.integers(1024, 1060), st.integers(0, 5))
def test_from_the_same_state_both_ways_come_to_the_same_choice(states, num_tokens, seed):
    pool, index, sent = pool_of(states)
    blocks = PromptBlocks(num_tokens=num_tokens, block_tokens=16, hashes=HASHES)
    prompt = ReadablePrompt(by_digest={"d": blocks}, text=PromptBlocks(num_tokens=900, block_tokens=64, hashes=[]))
    endpoints, snapshots = pool.serving("m"), Snapshots(pool, index, sent)

    columns = snapshots.columns(endpoints, prompt, NOW_S)
    candidates = snapshots.candidates(endpoints, prompt, "", NOW_S, may_try=True)
    expected = choose(RouteRequest(model="m", num_tokens=num_tokens), candidates, random.Random(seed))

    if columns is None:
        assert any(is_unusual(state) for state in states)
    else:
        lately = [endpoint.recent_ms(NOW_S) for endpoint in endpoints]
        picked = choose_usual("m", num_tokens, columns, lately.__getitem__, random.Random(seed))
        assert picked is None or told(picked[1]) == told(expected)


def is_unusual(state):
    one = SimpleNamespace(**state)
    return (
        not one.ready or one.draining or not one.synced or one.digest is None or one.role == "prefill"
        or one.new_s is not None or (one.report is not None and one.age_s > 3)
    )  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "begin", "end", "report", "forget", "wait"]), st.integers(0, 9)), max_size=60
    )
)
def test_the_load_is_what_was_reported_and_all_that_was_sent_since(steps):
    endpoint = Endpoint(EndpointEntry(id="w", url="http://w:1", models=["m"]), RevisionCounts())
    now_s, open_now, reported_s = 100.0, [], None

    for step, number in steps:
        one = open_now[number % len(open_now)] if open_now else None
        if step == "wait":
            now_s += number / 50
        elif step == "send":
            open_now.append(Reservation(endpoint, number, now_s))
            open_now[-1].take()
        elif step == "report":
            report = LoadReport(
                pod="p", model="m", epoch="e", ts=0.0, kv_seq=0, running=number, waiting=1, free_blocks=9,
                total_blocks=9, uncached_tokens=5,
            )  # fmt: skip
            endpoint.take_report(report, now_s)
            reported_s = now_s
        elif step == "forget":
            endpoint.forget_report()
            reported_s = None
        elif one is not None and step == "begin":
            one.first_byte(now_s, is_stream=False)
        elif one is not None:
            one.give_back()
            open_now.remove(one)

    since = open_now if reported_s is None else [one for one in open_now if one.started_s > reported_s - 0.05]
    known = (0, 0) if reported_s is None else (endpoint.report.running + 1, 5)
    assert endpoint.load() == (known[0] + len(since), known[1] + sum(one.uncached for one in since if one.waiting))
