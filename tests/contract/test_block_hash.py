"""The block hash is pinned: routers and workers of different builds must agree on every bit."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_contract.block_hash import (
    SCHEME,
    BlockHasher,
    ExtraKeys,
    hash_block,
    hash_blocks,
    root_digest,
    wire_hash,
    wire_hashes,
)

VECTORS = json.loads((Path(__file__).parent / "block_hash_vectors.json").read_text("utf-8"))
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=80)
KEYS = st.builds(ExtraKeys, adapter=st.none() | st.text(max_size=5), cache_salt=st.none() | st.text(max_size=5))


def test_scheme_and_root_are_pinned() -> None:
    root = root_digest()

    assert VECTORS["scheme"] == SCHEME
    assert root.hex() == VECTORS["root"]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_digests_are_pinned(case: dict[str, Any]) -> None:
    keys = ExtraKeys(adapter=case["adapter"], cache_salt=case["cache_salt"])

    digests = hash_blocks(case["token_ids"], case["block_size"], keys)

    assert [digest.hex() for digest in digests] == case["digests"]
    assert wire_hashes(digests) == case["wire"]


@given(tokens=TOKENS, block_size=st.integers(1, 20), keys=KEYS, cuts=st.lists(st.integers(0, 80)))
def test_cutting_tokens_into_calls_changes_nothing(
    tokens: list[int], block_size: int, keys: ExtraKeys, cuts: list[int]
) -> None:
    hasher = BlockHasher(block_size, keys)
    edges = [0, *sorted(min(cut, len(tokens)) for cut in cuts), len(tokens)]

    added = [digest for start, end in pairwise(edges) for digest in hasher.extend(tokens[start:end])]

    assert added == hasher.digests == hash_blocks(tokens, block_size, keys)
    assert hasher.num_tokens == len(tokens)


@given(tokens=TOKENS, block_size=st.integers(1, 20), keys=KEYS)
def test_appending_one_by_one_equals_the_chain_of_single_blocks(
    tokens: list[int], block_size: int, keys: ExtraKeys
) -> None:
    hasher, parent, chain = BlockHasher(block_size, keys), root_digest(), []
    for index in range(len(tokens) // block_size):
        block = tokens[index * block_size : (index + 1) * block_size]
        parent = hash_block(parent, block, keys.of_block(index))
        chain.append(parent)

    appended = [digest for token in tokens if (digest := hasher.append(token)) is not None]

    assert appended == chain


@given(tokens=TOKENS, more=TOKENS, block_size=st.integers(1, 20), keys=KEYS)
def test_a_prefix_has_a_prefix_of_the_digests(
    tokens: list[int], more: list[int], block_size: int, keys: ExtraKeys
) -> None:
    short = hash_blocks(tokens, block_size, keys)

    long = hash_blocks(tokens + more, block_size, keys)

    assert long[: len(short)] == short


def test_adapter_and_salt_separate_every_block() -> None:
    tokens = list(range(48))
    variants = [ExtraKeys(), ExtraKeys(adapter="a"), ExtraKeys(cache_salt="a"), ExtraKeys(adapter="a", cache_salt="a")]

    digests = [digest for keys in variants for digest in hash_blocks(tokens, 16, keys)]

    assert len(set(digests)) == 12


def test_a_copy_goes_its_own_way() -> None:
    original = BlockHasher(4, ExtraKeys(cache_salt="s"))
    original.extend([1, 2, 3, 4, 5])

    other = original.copy()
    other.extend([6, 7, 8])
    original.extend([9, 9, 9])

    assert other.digests == hash_blocks([1, 2, 3, 4, 5, 6, 7, 8], 4, ExtraKeys(cache_salt="s"))
    assert original.digests == hash_blocks([1, 2, 3, 4, 5, 9, 9, 9], 4, ExtraKeys(cache_salt="s"))


def test_wire_hash_is_the_low_64_bits() -> None:
    digest = bytes(range(32))

    wire = wire_hash(digest)

    assert wire == 0x18191A1B1C1D1E1F


@pytest.mark.parametrize("token", [-1, 2**32])
def test_an_id_that_is_no_uint32_is_refused(token: int) -> None:
    hasher = BlockHasher(4)

    with pytest.raises(OverflowError):
        hasher.extend([token])


def test_a_block_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        BlockHasher(0)


@pytest.mark.parametrize("cut", [0, 3, 4, 9, 16])
def test_a_fork_goes_on_with_the_digests_of_blocks_to_come(cut: int) -> None:
    keys, ids = ExtraKeys(adapter="a", cache_salt="s"), list(range(23))
    hasher = BlockHasher(4, keys)
    hasher.extend(ids[:cut])

    fork = hasher.fork()
    fork.extend(ids[cut:])
    hasher.drop_digests()
    hasher.extend(ids[cut:])

    assert fork.digests == hasher.digests == hash_blocks(ids, 4, keys)[cut // 4 :]
    assert fork.num_tokens == hasher.num_tokens == 23
