"""Steps of prompts are found again by their beginning, within a bound on bytes."""

from quire_contract.block_hash import BlockChain, ExtraKeys, hash_blocks, token_bytes, wire_hashes
from quire_router.prompt_cache import STEP_BYTES, PromptCache

IDS = {"a": list(range(10)), "b": list(range(100, 137)), "c": [7], "d": list(range(50))}


def read(cache, segments, root="root", keys=ExtraKeys()):  # noqa: B008 - frozen
    """(how many segments were known, all hashes, number of tokens)"""
    begin = cache.root(root)
    steps = [begin or cache.begin(root, *BlockChain.start(4, keys).extend(b""))]
    missing = cache.follow(steps, iter(segments))
    cache.touch(steps)
    known = -1 if begin is None else len(steps) - 1
    assert missing == (segments[len(steps) - 1] if len(steps) <= len(segments) else None)
    for segment in segments[len(steps) - 1 :]:
        steps.append(cache.extend(steps[-1], segment, token_bytes(IDS[segment])))
    return known, hashes_of(steps), steps[-1].num_tokens


def hashes_of(steps):
    return [block for step in steps for block in step.hashes]


def expected(segments, keys=ExtraKeys()):  # noqa: B008 - frozen
    ids = [token_id for segment in segments for token_id in IDS[segment]]
    return wire_hashes(hash_blocks(ids, 4, keys)), len(ids)


def test_a_known_beginning_is_taken_from_the_cache_with_the_hashes_of_the_whole():
    cache, prompts = PromptCache(), ["ab", "abc", "abcd", "acb", "abd"]

    read_now = [read(cache, list(prompt)) for prompt in prompts]

    assert [known for known, _, _ in read_now] == [-1, 2, 3, 1, 2]
    assert [tuple(rest) for _, *rest in read_now] == [expected(prompt) for prompt in prompts]


def test_the_same_text_under_another_salt_is_another_prompt():
    cache, salted = PromptCache(), ExtraKeys(adapter="x", cache_salt="s")

    plain = read(cache, ["a", "b"])
    other = read(cache, ["a", "b"], root="salted", keys=salted)

    assert (plain[0], other[0]) == (-1, -1)
    assert other[1] == expected("ab", salted)[0]
    assert not set(plain[1]) & set(other[1])


def test_a_way_that_was_joined_is_found_at_once_and_goes_on_as_its_steps_do():
    cache = PromptCache()
    read(cache, list("abcd"))
    steps = [cache.root("root")]
    cache.follow(steps, iter("abc"))
    cache.join(steps[0], steps[1:], "abc", "d")

    found = cache.after(steps[0], "abc", "d")
    way = [steps[0], found]
    missing = cache.follow(way, iter("da"))

    assert (found.num_chars, found.num_tokens, hashes_of(way)) == (3, 48, expected("abcd")[0])
    assert missing == "a"
    assert cache.after(steps[0], "abc", "c") is None
    assert cache.after(steps[1], "abc", "d") is None


def test_what_was_not_used_for_longest_goes_first_and_beginnings_stay_longer_than_ends():
    cache = PromptCache(max_bytes=5 * (STEP_BYTES + 120))
    for prompt in ("ab", "ac", "ab", "ad", "ab"):
        read(cache, list(prompt))
    sizes = [cache.size_bytes]
    for number in range(50):
        IDS[f"n{number}"] = [number]
        read(cache, ["a", f"n{number}"])
        sizes.append(cache.size_bytes)

    assert read(cache, ["a", "n49"])[0] == 2
    assert read(cache, ["a", "n1"])[0] == 1
    assert max(sizes) <= 5 * (STEP_BYTES + 120)


def test_a_beginning_in_use_stays_in_a_large_cache_whose_other_steps_come_and_go():
    cache, known = PromptCache(max_bytes=100 * (STEP_BYTES + 120)), []
    for number in range(1000):
        IDS[f"n{number}"] = [number]
        known.append(read(cache, ["a", "d", f"n{number}"])[0])

    assert known == [-1] + [2] * 999
    assert len(cache) < 150
