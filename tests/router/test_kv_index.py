"""The index against a dictionary of sets."""

from hypothesis import given
from hypothesis import strategies as st

from quire_router.kv_index import SENT_TICK_S, KvIndex, SentIndex, extend_match

IDS = ["a", "b", "c"]
HASHES = st.lists(st.integers(0, 30), max_size=8)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "clear"]), st.sampled_from(IDS), HASHES), max_size=40)


def leading(hashes, held):
    count = 0
    while count < len(hashes) and hashes[count] in held:
        count += 1
    return count


@given(STEPS, HASHES, st.sets(st.sampled_from(IDS)))
def test_the_index_finds_what_a_dictionary_of_sets_finds(steps, prompt, asked):
    index, model = KvIndex(), {endpoint_id: set() for endpoint_id in IDS}

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


def test_a_hole_ends_the_match():
    index = KvIndex()
    index.add("a", [1, 2, 4])

    assert index.match_prefix([1, 2, 3, 4], ["a"]) == {"a": 2}


def test_a_full_index_keeps_what_it_has_and_counts_what_it_refuses():
    index = KvIndex(max_blocks=4)
    index.add("a", [1, 2, 3, 4, 5, 6])

    index.add("b", [1, 2, 3])

    assert index.match_prefix([1, 2, 3, 4, 5], ["a", "b"]) == {"a": 4, "b": 2}
    assert index.num_refused == 3


def test_a_slot_that_is_used_again_inherits_nothing():
    index = KvIndex()
    index.add("old", [1, 2])
    index.add("other", [1])

    index.clear("old")
    index.add("new", [2])

    assert index.match_prefix([1, 2], ["old", "new", "other"]) == {"other": 1}
    assert index.match_prefix([2], ["new"]) == {"new": 1}


def test_clearing_everything_leaves_nothing_behind():
    index = KvIndex()
    for endpoint_id in IDS:
        index.add(endpoint_id, range(100))

    for endpoint_id in IDS:
        index.clear(endpoint_id)

    assert index.num_entries == 0
    assert index._holders == {}


def test_what_was_sent_counts_until_it_is_too_old():
    sent = SentIndex()
    sent.record("a", [1, 2, 3], now_s=10.0)

    assert sent.match_prefix("a", [1, 2, 3, 4], since_s=9.0) == 3
    assert sent.match_prefix("a", [1, 2, 3, 4], since_s=10.5) == 0
    assert sent.match_prefix("b", [1], since_s=0.0) == 0


def test_what_was_sent_long_ago_gives_way_first():
    sent = SentIndex(max_blocks_per_endpoint=3)
    sent.record("a", [1, 2], now_s=1.0)
    sent.record("a", [1, 3, 4], now_s=2.0)

    assert sent.num_blocks("a") == 3
    assert sent.match_prefix("a", [1, 3, 4], since_s=0.0) == 3
    assert sent.match_prefix("a", [2], since_s=0.0) == 0


def test_a_match_goes_on_through_blocks_that_were_just_sent():
    index, sent = KvIndex(), SentIndex()
    index.add("a", [1, 2, 4])
    sent.record("a", [3, 9], now_s=5.0)

    assert extend_match(index, sent, "a", [1, 2, 3, 4, 5], 2, since_s=4.0) == 4
    assert extend_match(index, sent, "a", [1, 2, 3, 4, 5], 2, since_s=6.0) == 2


PROMPTS = st.lists(st.integers(0, 2), max_size=7)
"""As what distinguishes each block from others after the same beginning."""


def chained(prompt):
    """Each block named by itself and all before it, as real hashes are."""
    return [hash(tuple(prompt[: place + 1])) for place in range(len(prompt))]


@given(
    st.lists(st.tuples(PROMPTS, st.integers(0, 12)), max_size=20), PROMPTS, st.integers(0, 30), st.sets(st.integers())
)
def test_what_was_sent_is_found_as_a_walk_through_the_prompt_finds_it(prompts, asked, life, some):
    index, sent, now_s, times = KvIndex(), SentIndex(), 100.0, {}
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


def test_ends_of_prompts_give_way_before_their_beginnings():
    sent, prompt = SentIndex(max_blocks_per_endpoint=8), [1, 2, 3, 4]

    sent.record("a", prompt, now_s=1.0)
    sent.record("a", [11, 12, 13], now_s=2.0)
    sent.record("a", [21, 22], now_s=3.0)
    first, second, third = [sent.match_prefix("a", hashes, since_s=0.0) for hashes in (prompt, [11, 12, 13], [21, 22])]

    assert (first, second, third, sent.num_blocks("a")) == (0, 2, 2, 4)


def test_of_a_prompt_longer_than_what_is_remembered_the_beginning_stays():
    sent, prompt = SentIndex(max_blocks_per_endpoint=8), list(range(20))

    sent.record("a", prompt, now_s=1.0)

    assert (sent.match_prefix("a", prompt, since_s=0.0), sent.num_blocks("a")) == (8, 8)
