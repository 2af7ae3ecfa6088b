"""Physical KV blocks: who is free, who is referenced, and which content can be found again.

Knows numbers and digests only: no tokens, requests, tensors or policy.

Every block 1..N-1 is in exactly one place (block 0 is the null block: never handed out, and the sentinel of the LRU list):

    blank        unreferenced, no content worth keeping: a stack
    idle         unreferenced, hashed: doubly linked, oldest first. A lookup may bring it back, allocation may evict it
    referenced   one reference for each table that names it, and for each plan in flight that copies from it

Blank blocks are used up before the oldest idle one is evicted, so cached content lives as long as it can.
"""

from collections.abc import Iterable, Sequence

from quire_worker.kv.events import BlockEvicted, BlocksStored, CacheEvent

NULL_BLOCK = 0


class BlockPool:
    """Blocks of one pool, shared by all groups; content is looked up per group."""

    __slots__ = (
        "_blank",
        "_by_digest",
        "_digests",
        "_events",
        "_groups",
        "_next",
        "_num_idle",
        "_prev",
        "_refs",
        "num_blocks",
    )

    def __init__(self, num_blocks: int, num_groups: int = 1) -> None:
        """`num_blocks` counts the null block."""
        assert num_blocks >= 2, "a pool needs the null block and one more"
        self.num_blocks = num_blocks
        self._refs = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._groups = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, 0, -1))
        # The idle list: _next[0] is the oldest, _prev[0] the newest. Index arrays, because an idle block is taken out of
        # the middle in O(1) when it is found again, and no object per block has to be made.
        self._next = [0] * num_blocks
        self._prev = [0] * num_blocks
        self._num_idle = 0
        self._by_digest: list[dict[bytes, int]] = [{} for _ in range(num_groups)]
        self._events: list[CacheEvent] = []

    @property
    def num_free(self) -> int:
        """Blocks that allocate() can hand out: blank ones and idle ones."""
        return len(self._blank) + self._num_idle

    @property
    def num_cached(self) -> int:
        """Blocks that a lookup can find, referenced or idle."""
        return sum(len(blocks) for blocks in self._by_digest)

    def find(self, group: int, digest: bytes) -> int | None:
        """The block of `group` with this content, if any. Changes nothing: the block is safe only after acquire()."""
        return self._by_digest[group].get(digest)

    def is_idle(self, block: int) -> bool:
        """Whether nobody references the block."""
        return self._refs[block] == 0

    def is_exclusive(self, block: int) -> bool:
        """Whether one release would free the block."""
        return self._refs[block] == 1

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, or None and nothing changes."""
        blank = self._blank
        if count > len(blank) + self._num_idle:
            return None
        num_blank = min(count, len(blank))
        blocks = [blank.pop() for _ in range(num_blank)]
        for _ in range(count - num_blank):
            blocks.append(self._evict_oldest())
        refs = self._refs
        for block in blocks:
            refs[block] = 1
        return blocks

    def acquire(self, block: int) -> None:
        """One reference more, to a referenced or idle block."""
        if self._refs[block] == 0:
            assert self._digests[block] is not None, f"block {block} has neither content nor references"
            self._unlink(block)
        self._refs[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One reference less each; null blocks are skipped.

        Give a sequence's last block first: among blocks freed together the later ones stay longer, and the head of a
        sequence is worth more than its tail."""
        refs = self._refs
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            refs[block] -= 1
            if refs[block] == 0:
                if self._digests[block] is None:
                    self._blank.append(block)
                else:
                    self._link_newest(block)
            else:
                assert refs[block] > 0, f"block {block} was released more often than acquired"

    def keep(self, group: int, block: int, digest: bytes) -> bool:
        """Make a referenced block's content findable. False if another block already holds it: ours then stays unhashed."""
        assert self._refs[block] > 0 and self._digests[block] is None
        if self._by_digest[group].setdefault(digest, block) != block:
            return False
        self._digests[block] = digest
        self._groups[block] = group
        return True

    def record(self, event: BlocksStored) -> None:
        """Add to the events; evictions are added by the pool itself, so the order is the true one."""
        self._events.append(event)

    def take_events(self) -> list[CacheEvent]:
        """Events since the last call, oldest first."""
        events = self._events
        if events:
            self._events = []
        return events

    def check(self, holders: Iterable[Sequence[int]] | None = None) -> None:
        """Recount everything; AssertionError on the first contradiction. `holders`: every list that holds references."""
        idle = self._walk_idle()
        assert len(idle) == self._num_idle, "idle list and its count differ"
        places = sorted([*self._blank, *idle, *(b for b in range(1, self.num_blocks) if self._refs[b] > 0)])
        assert places == list(range(1, self.num_blocks)), "a block is in no place or in two"
        assert self._refs[NULL_BLOCK] == 0 and self._digests[NULL_BLOCK] is None, "the null block is in use"
        assert all(self._digests[b] is None for b in self._blank), "a blank block has a digest"
        assert all(self._digests[b] is not None for b in idle), "an idle block has no digest"
        found = sorted(b for blocks in self._by_digest for b in blocks.values())
        assert found == [b for b in range(self.num_blocks) if self._digests[b] is not None], "lookup and digests differ"
        for group, blocks in enumerate(self._by_digest):
            for digest, block in blocks.items():
                assert self._digests[block] == digest and self._groups[block] == group, f"block {block} is misfiled"
        if holders is not None:
            self._check_references(holders)

    def _check_references(self, holders: Iterable[Sequence[int]]) -> None:
        counts = [0] * self.num_blocks
        for blocks in holders:
            for block in blocks:
                counts[block] += block != NULL_BLOCK
        assert counts == self._refs, "reference counts differ from what the holders hold"

    def _walk_idle(self) -> list[int]:
        blocks: list[int] = []
        block = self._next[NULL_BLOCK]
        while block != NULL_BLOCK and len(blocks) <= self.num_blocks:
            assert self._prev[self._next[block]] == block, "the idle list is torn"
            blocks.append(block)
            block = self._next[block]
        return blocks

    def drop_idle(self) -> None:
        """Forget the content of every unreferenced block."""
        while self._num_idle:
            self._blank.append(self._evict_oldest())

    def _evict_oldest(self) -> int:
        block = self._next[NULL_BLOCK]
        self._unlink(block)
        digest = self._digests[block]
        assert digest is not None
        group = self._groups[block]
        del self._by_digest[group][digest]
        self._digests[block] = None
        self._events.append(BlockEvicted(group, digest))
        return block

    def _link_newest(self, block: int) -> None:
        newest = self._prev[NULL_BLOCK]
        self._next[newest] = block
        self._prev[block] = newest
        self._next[block] = NULL_BLOCK
        self._prev[NULL_BLOCK] = block
        self._num_idle += 1

    def _unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before] = after
        self._prev[after] = before
        self._num_idle -= 1
