from collections.abc import Sequence

from quire_contract.block_hash import ExtraKeys, hash_blocks
from quire_worker.kv.block_manager import BlockManager, BlockTable
from quire_worker.kv.block_pool import BlockPool
from quire_worker.kv.events import BlocksStored
from quire_worker.plan import KVGroup

BLOCK_SIZE = 4
NO_KEYS = ExtraKeys(adapter=None, cache_salt=None)


def manager(*, blocks: int = 20, windows: Sequence[int | None] = (None,), caching: bool = True) -> BlockManager:
    groups = [KVGroup(num_layers=1, window=window) for window in windows]
    return BlockManager(BlockPool(blocks + 1, len(groups)), BLOCK_SIZE, groups, enable_prefix_caching=caching)


def prompt(num_tokens: int, start: int = 0) -> list[int]:
    return list(range(start, start + num_tokens))


def admitted(kv: BlockManager, tokens: list[int], keys: ExtraKeys = NO_KEYS) -> BlockTable:
    """A table whose tokens are all computed and committed."""
    chain = kv.new_chain(keys, tokens)
    table = kv.admit(kv.match_prefix(chain, len(tokens) - 1), len(tokens))
    assert table is not None
    kv.commit(table, chain, tokens, len(tokens))
    return table


def match(kv: BlockManager, tokens: list[int], keys: ExtraKeys = NO_KEYS) -> int:
    return kv.match_prefix(kv.new_chain(keys, tokens), len(tokens) - 1).num_tokens


def test_a_prefix_is_found_while_in_use_and_after_release() -> None:
    kv = manager()
    table = admitted(kv, prompt(10))

    in_use = match(kv, prompt(10))
    kv.release(table)

    assert in_use == 8
    assert match(kv, prompt(10)) == 8


def test_a_hit_never_covers_the_whole_prompt() -> None:
    kv = manager()
    admitted(kv, prompt(8))

    assert match(kv, prompt(8)) == 4
    assert match(kv, prompt(9)) == 8


def test_only_whole_blocks_of_committed_tokens_are_found() -> None:
    kv = manager()
    tokens = prompt(12)
    chain = kv.new_chain(NO_KEYS, tokens)
    table = kv.admit(kv.match_prefix(chain, 11), 12)
    assert table is not None

    kv.commit(table, chain, tokens, 7)

    assert match(kv, tokens) == 4


def test_salt_and_adapter_keep_prefixes_apart() -> None:
    kv = manager()
    admitted(kv, prompt(8), ExtraKeys(adapter=None, cache_salt="one"))

    assert match(kv, prompt(9), ExtraKeys(adapter=None, cache_salt="one")) == 8
    assert match(kv, prompt(9), ExtraKeys(adapter=None, cache_salt="two")) == 0
    assert match(kv, prompt(9), ExtraKeys(adapter="a", cache_salt="one")) == 0
    assert match(kv, prompt(9)) == 0


def test_without_prefix_caching_nothing_is_found_or_reported() -> None:
    kv = manager(caching=False)

    admitted(kv, prompt(8))

    assert match(kv, prompt(9)) == 0
    assert kv.pool.take_events() == []


def test_an_admission_that_does_not_fit_changes_nothing() -> None:
    kv = manager(blocks=4)
    kv.release(admitted(kv, prompt(8)))
    chain = kv.new_chain(NO_KEYS, prompt(20))

    table = kv.admit(kv.match_prefix(chain, 19), 20)

    assert table is None
    assert kv.pool.num_free == 4
    kv.pool.check([])


def test_found_blocks_that_were_free_are_not_counted_twice() -> None:
    kv = manager(blocks=4)
    kv.release(admitted(kv, prompt(8)))
    chain = kv.new_chain(NO_KEYS, prompt(16))

    table = kv.admit(kv.match_prefix(chain, 15), 16)

    assert table is not None
    assert len(set(table.block_ids[0])) == 4
    assert kv.pool.num_free == 0


def test_extend_grows_all_groups_or_none() -> None:
    kv = manager(blocks=5, windows=(None, 8))
    table = admitted(kv, prompt(8))

    assert kv.extend(table, 9) is None

    assert [len(blocks) for blocks in table.block_ids] == [2, 2]
    assert kv.pool.num_free == 1


def test_stored_blocks_are_reported_once_with_their_parent() -> None:
    kv = manager()
    admitted(kv, prompt(8))
    kv.pool.take_events()

    admitted(kv, prompt(17))

    digests = hash_blocks(prompt(17), BLOCK_SIZE)
    assert kv.pool.take_events() == [BlocksStored(0, digests[2:4], digests[1], prompt(8, start=8), None)]


def test_a_fork_shares_full_blocks_and_copies_the_partly_filled_one() -> None:
    kv = manager()
    table = admitted(kv, prompt(10))

    fork = kv.fork(table, 9, 10)

    assert fork is not None
    assert fork.table.block_ids[0][:2] == table.block_ids[0][:2]
    assert fork.table.block_ids[0][2] != table.block_ids[0][2]
    assert fork.copies == [(table.block_ids[0][2], fork.table.block_ids[0][2])]
    kv.pool.check([table.block_ids[0], fork.table.block_ids[0]])


def test_a_fork_at_a_block_boundary_copies_nothing() -> None:
    kv = manager()
    table = admitted(kv, prompt(9))

    fork = kv.fork(table, 8, 9)

    assert fork is not None
    assert fork.copies == []


def test_a_fork_that_does_not_fit_changes_nothing() -> None:
    kv = manager(blocks=3)
    table = admitted(kv, prompt(10))

    assert kv.fork(table, 9, 10) is None

    kv.pool.check([table.block_ids[0]])


def test_blocks_behind_the_window_are_released_when_no_later_token_reads_them() -> None:
    kv = manager(windows=(6,))
    table = admitted(kv, prompt(16))

    # Token 9 attends to 4..9, so block 0 (tokens 0..3) is the only one behind; token 8 still attends to 3.
    assert kv.drop_behind(table, 8) == []
    dropped = kv.drop_behind(table, 9)

    assert dropped == [(0, 0)]
    assert table.block_ids[0][0] == 0
    assert kv.pool.num_free == 20 - 3


def test_a_hit_in_a_windowed_group_needs_only_the_blocks_in_reach() -> None:
    kv = manager(blocks=8, windows=(6,))
    table = admitted(kv, prompt(24))
    kv.drop_behind(table, 24)
    assert kv.pool.allocate(5) is not None  # evicts what fell behind
    kv.release(table)

    found = kv.match_prefix(kv.new_chain(NO_KEYS, prompt(25)), 24)

    assert found.num_tokens == 24
    assert found.block_ids[0][:4] == [0, 0, 0, 0]
    assert all(found.block_ids[0][4:])


def test_a_prefix_must_be_present_in_every_group() -> None:
    kv = manager(windows=(None, None))
    table = admitted(kv, prompt(8))
    kv.pool.release([table.block_ids[1].pop()])  # the second group forgets its last block
    for _ in range(kv.pool.num_free):
        kv.pool.allocate(1)

    assert match(kv, prompt(9)) == 4


def test_a_fork_is_refused_when_the_source_dropped_what_it_would_read() -> None:
    kv = manager(windows=(5,))
    table = admitted(kv, prompt(9))
    kv.drop_behind(table, 9)  # token 8, which the fork computes again, attends to 4..8; block 0 is behind for both

    assert kv.fork(table, 8, 9) is not None
    kv.drop_behind(table, 12)

    assert kv.fork(table, 8, 9) is None
