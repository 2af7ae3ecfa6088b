"""Block tables: which blocks hold a sequence's tokens, in every group.

Decides about blocks only: no requests, order or policy, and no tensors.

One table, one group, block size B; w is the first block that the group's window can still reach (0 without a window):

    index      0 ........ w ............... num_hashed ........... num_computed / B ........ num_blocks
               │ null (0) │ full, findable │ full, hashed at commit │ reserved or being filled │
    owner        nobody     the table, and    the table alone          the table alone
                            whoever else
                            found them

Only full blocks are ever shared, so a block that is written has one owner; fork() copies the partly filled one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quire_contract.block_hash import ExtraKeys
from quire_worker.kv.block_pool import NULL_BLOCK, BlockPool
from quire_worker.kv.digest_chain import DigestChain
from quire_worker.kv.events import BlocksStored
from quire_worker.plan import KVGroup


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Content found in the cache. Holds no references: it is stale once the pool changes."""

    num_tokens: int
    """A multiple of the block size."""
    block_ids: list[list[int]]
    """[group][i]; 0 for blocks wholly behind the group's window."""


class BlockTable:
    """Blocks of one sequence."""

    __slots__ = ("block_ids", "num_behind", "num_blocks", "num_hashed")

    def __init__(self, block_ids: list[list[int]], num_blocks: int, num_hashed: int, num_behind: list[int]) -> None:
        self.block_ids = block_ids
        """[group][i]: the block of tokens [i*B, (i+1)*B), or 0 behind the window."""
        self.num_blocks = num_blocks
        """Entries in each group's list."""
        self.num_hashed = num_hashed
        """Leading blocks that were offered to the cache."""
        self.num_behind = num_behind
        """[group]: leading entries that are 0."""


@dataclass(frozen=True, slots=True)
class Fork:
    """A table that shares another's full blocks."""

    table: BlockTable
    copies: list[tuple[int, int]]
    """(source, destination), to be made before anything is written. The sources belong to the other table: acquire them
    for as long as the copy has not been made."""


class BlockManager:
    """Block tables over one pool."""

    def __init__(
        self, pool: BlockPool, block_size: int, groups: Sequence[KVGroup], *, enable_prefix_caching: bool = True
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self._num_groups = len(groups)
        self._windows = [group.window for group in groups]
        self._windowed = [(g, group.window) for g, group in enumerate(groups) if group.window is not None]
        self._unwindowed = [g for g, group in enumerate(groups) if group.window is None]
        self._caching = enable_prefix_caching

    def new_chain(self, keys: ExtraKeys, token_ids: list[int]) -> DigestChain:
        """The digests of `token_ids`' full blocks; none are computed if nothing is cached."""
        chain = DigestChain(keys, self.block_size)
        if self._caching:
            chain.extend(token_ids, len(token_ids) // self.block_size)
        return chain

    def num_blocks_for(self, num_tokens: int) -> int:
        """Physical blocks that `num_tokens` tokens take over all groups."""
        return -(-num_tokens // self.block_size) * self._num_groups

    def match_prefix(self, chain: DigestChain, max_tokens: int) -> PrefixMatch:
        """The longest cached prefix of at most `max_tokens` tokens that holds in every group. Changes nothing.

        A window needs only the blocks it reaches from the prefix's end, so a hit may start with null blocks."""
        limit = min(max_tokens // self.block_size, len(chain.digests)) if self._caching else 0
        length = self._longest_windowed(chain.digests, self._longest_whole(chain.digests, limit))
        return PrefixMatch(
            length * self.block_size, [self._found(g, chain.digests, length) for g in range(self._num_groups)]
        )

    def admit(self, match: PrefixMatch, num_tokens: int) -> BlockTable | None:
        """A table with room for `num_tokens` tokens that begins with the match, or None and nothing changes."""
        pool = self.pool
        num_blocks = -(-num_tokens // self.block_size)
        num_found = match.num_tokens // self.block_size
        found = [block for blocks in match.block_ids for block in blocks if block != NULL_BLOCK]
        num_revived = sum(map(pool.is_idle, found))
        if (num_blocks - num_found) * self._num_groups > pool.num_free - num_revived:
            return None
        for block in found:
            pool.acquire(block)
        fresh = self._allocate(num_blocks - num_found)
        assert fresh is not None
        block_ids = [old + new for old, new in zip(match.block_ids, fresh, strict=True)]
        return BlockTable(
            block_ids, num_blocks, num_found, [self._behind(g, match.num_tokens) for g in range(self._num_groups)]
        )

    def extend(self, table: BlockTable, num_tokens: int) -> list[list[int]] | None:
        """Make room for `num_tokens` tokens. Returns [group] -> blocks appended, or None and nothing changes."""
        count = -(-num_tokens // self.block_size) - table.num_blocks
        fresh = self._allocate(count)
        if fresh is None:
            return None
        for blocks, new in zip(table.block_ids, fresh, strict=True):
            blocks.extend(new)
        table.num_blocks += count
        return fresh

    def commit(self, table: BlockTable, chain: DigestChain, token_ids: list[int], num_computed: int) -> None:
        """Make full blocks findable whose tokens are certain: token_ids[:num_computed] is committed, so is its KV."""
        if not self._caching:
            return
        num_full = num_computed // self.block_size
        if num_full > table.num_hashed:
            chain.extend(token_ids, num_full)
            for group in range(self._num_groups):
                self._keep(table, chain, token_ids, group, num_full)
            table.num_hashed = num_full

    def drop_behind(self, table: BlockTable, num_computed: int) -> list[tuple[int, int]]:
        """Release blocks that no window reaches from token `num_computed` on. Returns the (group, index) that became 0.

        Steps in flight began at or after `num_computed` and so do not read them either."""
        dropped = []
        for group, _ in self._windowed:
            first, last = table.num_behind[group], min(self._behind(group, num_computed), table.num_blocks)
            if last > first:
                blocks = table.block_ids[group]
                self.pool.release(blocks[index] for index in range(last - 1, first - 1, -1))
                blocks[first:last] = [NULL_BLOCK] * (last - first)
                table.num_behind[group] = last
                dropped += [(group, index) for index in range(first, last)]
        return dropped

    @property
    def keeps_blocks(self) -> bool:
        """Whether released blocks can be found again for as long as nobody needs them."""
        return self._caching

    @property
    def follows_blocks(self) -> bool:
        """Whether commit() or drop_behind() has anything to do when a block fills."""
        return self._caching or bool(self._windowed)

    def fork(self, source: BlockTable, num_shared: int, num_tokens: int) -> Fork | None:
        """A table that shares the first `num_shared` tokens (all committed) and has room for `num_tokens`.

        Full blocks are shared; the partly filled one is copied, because its next slot will be written twice. None, and
        nothing changes, if the blocks are short or the source has already dropped a block that the fork would read."""
        num_full, num_partial = divmod(num_shared, self.block_size)
        num_blocks = -(-num_tokens // self.block_size)
        behind = [self._behind(group, num_shared) for group in range(self._num_groups)]
        if any(gone > needed for gone, needed in zip(source.num_behind, behind, strict=True)):
            return None
        fresh = self._allocate(num_blocks - num_full)
        if fresh is None:
            return None
        block_ids, copies = [], []
        for group, (theirs, new) in enumerate(zip(source.block_ids, fresh, strict=True)):
            shared = [NULL_BLOCK] * behind[group] + theirs[behind[group] : num_full]
            for block in shared[behind[group] :]:
                self.pool.acquire(block)
            if num_partial:
                copies.append((theirs[num_full], new[0]))
            block_ids.append(shared + new)
        return Fork(BlockTable(block_ids, num_blocks, min(source.num_hashed, num_full), behind), copies)

    def release(self, table: BlockTable) -> None:
        """Give all blocks back; the table is dead."""
        for blocks in table.block_ids:
            self.pool.release(reversed(blocks))
        table.block_ids = []

    def num_short(self, table: BlockTable, num_tokens: int) -> int:
        """Blocks that extend() lacks; at most 0 if it would succeed."""
        return self.num_blocks_for(num_tokens) - table.num_blocks * self._num_groups - self.pool.num_free

    def num_exclusive(self, table: BlockTable) -> int:
        """Blocks that releasing the table would free."""
        return sum(self.pool.is_exclusive(b) for blocks in table.block_ids for b in blocks if b != NULL_BLOCK)

    def _allocate(self, count: int) -> list[list[int]] | None:
        """`count` blocks for each group, or None."""
        blocks = self.pool.allocate(count * self._num_groups)
        if blocks is None:
            return None
        return [blocks[g * count : (g + 1) * count] for g in range(self._num_groups)]

    def _behind(self, group: int, num_computed: int) -> int:
        """Leading blocks that no token from `num_computed` on attends to: those that end at or before num_computed - W + 1."""
        window = self._windows[group]
        return 0 if window is None else max(0, num_computed - window + 1) // self.block_size

    def _longest_whole(self, digests: list[bytes], limit: int) -> int:
        """Leading blocks present in every group that keeps all tokens."""
        find = self.pool.find
        for group in self._unwindowed:
            limit = next((i for i in range(limit) if find(group, digests[i]) is None), limit)
        return limit

    def _longest_windowed(self, digests: list[bytes], limit: int) -> int:
        """The longest prefix of at most `limit` blocks whose windows are present. A missing block ends the prefix before it."""
        length = limit
        while (missing := self._last_missing(digests, length)) is not None:
            length = missing
        return length

    def _last_missing(self, digests: list[bytes], length: int) -> int | None:
        for group, _ in self._windowed:
            for index in range(length - 1, self._behind(group, length * self.block_size) - 1, -1):
                if self.pool.find(group, digests[index]) is None:
                    return index
        return None

    def _found(self, group: int, digests: list[bytes], length: int) -> list[int]:
        behind = self._behind(group, length * self.block_size)
        blocks = [NULL_BLOCK] * behind
        for index in range(behind, length):
            block = self.pool.find(group, digests[index])
            assert block is not None
            blocks.append(block)
        return blocks

    def _keep(self, table: BlockTable, chain: DigestChain, token_ids: list[int], group: int, num_full: int) -> None:
        """Offer blocks [num_hashed, num_full) to the cache and report each run of new ones as one event."""
        blocks, keep, digests = table.block_ids[group], self.pool.keep, chain.digests
        first = max(table.num_hashed, table.num_behind[group])
        kept = [index for index in range(first, num_full) if keep(group, blocks[index], digests[index])]
        for start, stop in _runs(kept):
            parent = digests[start - 1] if start else None
            tokens = token_ids[start * self.block_size : stop * self.block_size]
            self.pool.record(BlocksStored(group, digests[start:stop], parent, tokens, chain.adapter))


def _runs(indices: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending indices as half-open runs: [1, 2, 5] -> (1, 3), (5, 6)."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] != indices[end - 1] + 1:
            yield indices[start], indices[end - 1] + 1
            start = end
