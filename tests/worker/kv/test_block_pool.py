import pytest

from quire_worker.kv.block_pool import BlockPool
from quire_worker.kv.events import BlockEvicted


def cached(pool: BlockPool, name: bytes) -> int:
    """A block with content, nobody referencing it."""
    (block,) = pool.allocate(1) or ()
    assert pool.keep(0, block, name)
    pool.release([block])
    return block


def test_the_null_block_is_never_handed_out() -> None:
    pool = BlockPool(4)

    blocks = pool.allocate(3)

    assert sorted(blocks or []) == [1, 2, 3]
    assert pool.num_free == 0
    pool.check([blocks or []])


def test_an_allocation_that_does_not_fit_changes_nothing() -> None:
    pool = BlockPool(4)
    cached(pool, b"a")

    assert pool.allocate(4) is None

    assert pool.num_free == 3
    assert pool.find(0, b"a") is not None
    assert pool.take_events() == []


def test_blank_blocks_are_used_before_cached_ones() -> None:
    pool = BlockPool(4)
    block = cached(pool, b"a")

    taken = pool.allocate(2)

    assert block not in (taken or [])
    assert pool.find(0, b"a") == block


def test_the_block_unused_for_longest_is_evicted_first() -> None:
    pool = BlockPool(4)
    a, b, c = (cached(pool, name) for name in (b"a", b"b", b"c"))
    pool.acquire(a)
    pool.release([a])

    taken = pool.allocate(2)

    assert taken == [b, c]
    assert pool.find(0, b"a") == a
    assert pool.take_events() == [BlockEvicted(0, b"b"), BlockEvicted(0, b"c")]


def test_an_idle_block_can_be_taken_out_of_the_middle_of_the_queue() -> None:
    pool = BlockPool(4)
    a, b, c = (cached(pool, name) for name in (b"a", b"b", b"c"))

    pool.acquire(b)

    pool.check([[b]])
    assert pool.allocate(2) == [a, c]
    assert pool.allocate(1) is None


def test_content_that_another_block_holds_is_not_kept_twice() -> None:
    pool = BlockPool(4)
    first = cached(pool, b"a")
    (second,) = pool.allocate(1) or ()

    kept = pool.keep(0, second, b"a")

    assert not kept
    pool.release([second])
    assert pool.find(0, b"a") == first
    pool.check([])


def test_groups_do_not_find_each_others_content() -> None:
    pool = BlockPool(4, num_groups=2)
    block = cached(pool, b"a")

    assert pool.find(0, b"a") == block
    assert pool.find(1, b"a") is None


def test_a_block_shared_by_two_is_free_after_both_released_it() -> None:
    pool = BlockPool(2)
    block = cached(pool, b"a")
    pool.acquire(block)
    pool.acquire(block)

    pool.release([block])

    assert pool.num_free == 0
    pool.release([block])
    assert pool.num_free == 1


def test_releasing_a_free_block_is_an_error() -> None:
    pool = BlockPool(3)

    with pytest.raises(AssertionError, match="released more often"):
        pool.release([1])


def test_a_block_released_in_table_order_from_the_end_leaves_its_head_cached_longest() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3) or []
    for block, name in zip(blocks, (b"head", b"middle", b"tail"), strict=True):
        pool.keep(0, block, name)

    pool.release(reversed(blocks))
    pool.allocate(2)

    assert pool.find(0, b"head") == blocks[0]
    assert pool.find(0, b"tail") is None


def test_check_notices_a_reference_that_nobody_holds() -> None:
    pool = BlockPool(3)
    pool.allocate(1)

    with pytest.raises(AssertionError, match="reference counts differ"):
        pool.check([])
