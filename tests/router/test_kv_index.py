"""The index against a dictionary of sets, and its twin in C++ against both."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_router import kv_index
from quire_router.kv_index import SENT_TICK_S, extend_match
from quire_router.native.library import native

twins = pytest.mark.parametrize("kv", [kv_index, native()], ids=["python", "c++"])

IDS = ["a", "b", "c"]
HASHES = st.lists(st.integers(0, 30), max_size=8)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "clear"]), st.sampled_from(IDS), HASHES), max_size=40)


def leading(hashes, held):
    count = 0
    while count < len(hashes) and hashes[count] in held:
        count += 1
    return count


@twins
@given(STEPS, HASHES, st.sets(st.sampled_from(IDS)))
def test_the_index_finds_what_a_dictionary_of_sets_finds(kv, steps, prompt, asked):
    index, model = kv.KvIndex(), {endpoint_id: set() for endpoint_id in IDS}

    for action, endpoint_id, hashes in steps:
        if action == "add":
            index.add(endpoint_id, hashes)
            model[endpoint_id] |= set(hashes)
        elif action == "remove":
            index.remove(endpoint_id, hashes)
            model[endpoint_id] -= set(hashes)
        else:
            index.clear(endpoint_id)
            model[endpoint_id].clear()
    found = index.match_prefix(prompt, asked)

    assert found == {i: n for i in asked if (n := leading(prompt, model[i]))}
    assert {i: index.num_blocks(i) for i in IDS} == {i: len(model[i]) for i in IDS}
    assert index.num_entries == sum(len(held) for held in model.values())


@twins
def test_a_hole_ends_the_match(kv):
    index = kv.KvIndex()
    index.add("a", [1, 2, 4])

    assert index.match_prefix([1, 2, 3, 4], ["a"]) == {"a": 2}


@twins
def test_a_full_index_keeps_what_it_has_and_counts_what_it_refuses(kv):
    index = kv.KvIndex(max_blocks=4)
    index.add("a", [1, 2, 3, 4, 5, 6])

    index.add("b", [1, 2, 3])

    assert index.match_prefix([1, 2, 3, 4, 5], ["a", "b"]) == {"a": 4, "b": 2}
    assert index.num_refused == 3


@twins
def test_a_slot_that_is_used_again_inherits_nothing(kv):
    index = kv.KvIndex()
    index.add("old", [1, 2])
    index.add("other", [1])

    index.clear("old")
    index.add("new", [2])

    assert index.match_prefix([1, 2], ["old", "new", "other"]) == {"other": 1}
    assert index.match_prefix([2], ["new"]) == {"new": 1}


@twins
def test_clearing_everything_leaves_nothing_behind(kv):
    index = kv.KvIndex()
    for endpoint_id in IDS:
        index.add(endpoint_id, range(100))

    for endpoint_id in IDS:
        index.clear(endpoint_id)

    assert index.num_entries == 0
    assert index.match_prefix(range(100), IDS) == {}


@twins
def test_what_was_sent_counts_until_it_is_too_old(kv):
    sent = kv.SentIndex()
    sent.record("a", [1, 2, 3], 10.0)

    assert sent.match_prefix("a", [1, 2, 3, 4], 9.0) == 3
    assert sent.match_prefix("a", [1, 2, 3, 4], 10.5) == 0
    assert sent.match_prefix("b", [1], 0.0) == 0


@twins
def test_what_was_sent_long_ago_gives_way_first(kv):
    sent = kv.SentIndex(max_blocks_per_endpoint=3)
    sent.record("a", [1, 2], 1.0)
    sent.record("a", [1, 3, 4], 2.0)

    assert sent.num_blocks("a") == 3
    assert sent.match_prefix("a", [1, 3, 4], 0.0) == 3
    assert sent.match_prefix("a", [2], 0.0) == 0


@twins
def test_a_match_goes_on_through_blocks_that_were_just_sent(kv):
    index, sent = kv.KvIndex(), kv.SentIndex()
    index.add("a", [1, 2, 4])
    sent.record("a", [3, 9], 5.0)

    assert extend_match(index, sent, "a", [1, 2, 3, 4, 5], 2, since_s=4.0) == 4
    assert extend_match(index, sent, "a", [1, 2, 3, 4, 5], 2, since_s=6.0) == 2


PROMPTS = st.lists(st.integers(0, 2), max_size=7)
"""As what distinguishes each block from others after the same beginning."""


def chained(prompt):
    """Each block named by itself and all before it, as real hashes are."""
    return [hash(tuple(prompt[: place + 1])) for place in range(len(prompt))]


@twins
@given(
    st.lists(st.tuples(PROMPTS, st.integers(0, 12)), max_size=20), PROMPTS, st.integers(0, 30), st.sets(st.integers())
)
def test_what_was_sent_is_found_as_a_walk_through_the_prompt_finds_it(kv, prompts, asked, life, some):
    index, sent, now_s, times = kv.KvIndex(), kv.SentIndex(), 100.0, {}
    for prompt, passed in prompts:
        now_s += passed / 8
        sent.record("a", chained(prompt), now_s)
        times |= dict.fromkeys(chained(prompt), now_s)
    hashes, since_s = chained(asked), now_s - life / 8
    held = {block for block in hashes if block % 3 == len(some) % 3}
    index.add("a", held)
    matched = index.match_prefix(hashes, ["a"]).get("a", 0)

    found = sent.match_prefix("a", hashes, since_s)
    extended = extend_match(index, sent, "a", hashes, matched, since_s)

    def walk(start, early_s, also=()):
        depth = start
        while depth < len(hashes) and (times.get(hashes[depth], -1) >= since_s - early_s or hashes[depth] in also):
            depth += 1
        return depth

    assert walk(0, 0.0) <= found <= walk(0, 2 * SENT_TICK_S)
    assert walk(matched, 0.0, held) <= extended <= walk(matched, 2 * SENT_TICK_S, held)


@twins
def test_ends_of_prompts_give_way_before_their_beginnings(kv):
    sent, prompt = kv.SentIndex(max_blocks_per_endpoint=8), [1, 2, 3, 4]

    sent.record("a", prompt, 1.0)
    sent.record("a", [11, 12, 13], 2.0)
    sent.record("a", [21, 22], 3.0)
    first, second, third = [sent.match_prefix("a", hashes, 0.0) for hashes in (prompt, [11, 12, 13], [21, 22])]

    assert (first, second, third, sent.num_blocks("a")) == (0, 2, 2, 4)


@twins
def test_of_a_prompt_longer_than_what_is_remembered_the_beginning_stays(kv):
    sent, prompt = kv.SentIndex(max_blocks_per_endpoint=8), list(range(20))

    sent.record("a", prompt, 1.0)

    assert (sent.match_prefix("a", prompt, 0.0), sent.num_blocks("a")) == (8, 8)


MANY = [f"w{number}" for number in range(200)]


def walk(kv, seed, steps):
    """What an index says of itself after each of many random steps over hundreds of endpoints that come and go."""
    rng, index, seen = random.Random(seed), kv.KvIndex(max_blocks=3000), []
    chains = [[rng.getrandbits(64) for _ in range(rng.randint(1, 20))] for _ in range(40)]
    for _ in range(steps):
        chain, endpoint_id = rng.choice(chains), rng.choice(MANY)
        action = rng.choices(["add", "remove", "clear", "all"], [12, 4, 1, 1])[0]
        if action == "add":
            index.add(endpoint_id, chain[: rng.randint(0, len(chain))])
        elif action == "remove":
            index.remove(endpoint_id, rng.sample(chain, rng.randint(0, len(chain))))
        elif action == "clear":
            index.clear(endpoint_id)
        else:
            for other in rng.sample(MANY, 100):
                index.add(other, chain)
        asked = rng.sample(MANY, rng.randint(0, 200))
        found = index.match_prefix(chain, asked)
        seen.append((index.num_entries, index.num_refused, index.num_blocks(endpoint_id), found))
        seen.append([index.holds(other, chain[0]) for other in asked[:5]])
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_over_hundreds_of_endpoints_both_indexes_say_the_same(seed):
    in_python = walk(kv_index, seed, 400)
    in_cpp = walk(native(), seed, 400)

    assert in_cpp == in_python


def sent_walk(kv, seed, steps):
    """What is known of what was sent, after each of many random steps with times that pass."""
    rng, sent, now_s, seen = random.Random(seed), kv.SentIndex(max_blocks_per_endpoint=60), 50.0, []
    for _ in range(steps):
        now_s += rng.choice([0.0, 0.01, 0.2, 1.7])
        endpoint_id = rng.choice(IDS)
        hashes = chained([rng.randrange(3) for _ in range(rng.choice([0, 3, 6, 40, 90]))])
        if rng.random() < 0.03:
            sent.clear(endpoint_id)
        sent.record(endpoint_id, hashes, now_s)
        asked, since_s = chained([rng.randrange(3) for _ in range(8)]), now_s - rng.choice([0.0, 0.3, 2.0, 60.0])
        seen.append([(sent.num_blocks(i), sent.match_prefix(i, asked, since_s)) for i in IDS])
        seen.append([sent.has(i, block, since_s) for i in IDS for block in (*asked[:3], *hashes[:2])])
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_of_what_was_sent_both_remember_the_same(seed):
    in_python = sent_walk(kv_index, seed, 600)
    in_cpp = sent_walk(native(), seed, 600)

    assert in_cpp == in_python


def test_the_same_blocks_over_and_over_and_more_than_there_is_room_for_take_no_more_memory():
    index = native().KvIndex(max_blocks=10_000)
    index.add("a", range(10_000))
    full = index.num_bytes

    for start in range(0, 2_000_000, 100_000):
        index.add("a", range(start, start + 100_000))
        index.add("a", [7] * 1000)
    index.remove("a", range(2_000_000))

    assert (index.num_entries, index.num_refused) == (0, 1_990_000)
    assert full < 60 * 10_000
    assert index.num_bytes < full / 4


@pytest.mark.parametrize(
    "call",
    [
        lambda index, sent: index.add("a", ["no block"]),
        lambda index, sent: index.add(1, [1]),
        lambda index, sent: index.add("a", 1),
        lambda index, sent: index.add("a"),
        lambda index, sent: index.remove("known", [None]),
        lambda index, sent: index.match_prefix([1.5], ["known"]),
        lambda index, sent: index.match_prefix([1], [None]),
        lambda index, sent: sent.record("a", [b"x"], 1.0),
        lambda index, sent: sent.record("a", [1], "now"),
        lambda index, sent: sent.match_prefix("known", ["x"], 1.0),
        lambda index, sent: sent.has("known", "x", 1.0),
    ],
)
def test_what_is_no_block_is_refused_and_what_was_known_stays(call):
    index, sent = native().KvIndex(), native().SentIndex()
    index.add("known", [1, 2])
    sent.record("known", [1, 2], 1.0)

    with pytest.raises(TypeError):
        call(index, sent)

    assert index.match_prefix([1, 2], ["known"]) == {"known": 2}
    assert sent.match_prefix("known", [1, 2], 1.0) == 2
