"""Steps of prompts are found again by their beginning, within a bound on bytes."""

from quire_contract.block_hash import BlockHasher, ExtraKeys, hash_blocks, wire_hashes
from quire_router.prompt_cache import STEP_BYTES, PromptCache

IDS = {"a": list(range(10)), "b": list(range(100, 137)), "c": [7], "d": list(range(50))}


def read(cache, segments, root="root", keys=ExtraKeys()):  # noqa: B008 - frozen
    """(how many segments were known, all hashes, number of tokens)"""
    steps, missing = cache.find(root, iter(segments))
    known = len(steps) - 1
    assert missing == (segments[known] if 0 <= known < len(segments) else None)
    if not steps:
        steps = [cache.begin(root, BlockHasher(4, keys))]
    for segment in segments[len(steps) - 1 :]:
        steps.append(cache.extend(steps[-1], segment, IDS[segment]))
    return known, [block for step in steps for block in step.hashes], steps[-1].num_tokens


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
