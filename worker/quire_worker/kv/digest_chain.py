"""A sequence's chained block digests, computed once and only when blocks fill.

Knows tokens and the contract's hash; not which blocks exist.
"""

from quire_contract.block_hash import BlockHasher, ExtraKeys


class DigestChain:
    """digests[i] names tokens [0, (i+1) * block_size) of the sequence, adapter and cache salt included."""

    __slots__ = ("_block_size", "_hasher", "adapter", "digests")

    def __init__(self, keys: ExtraKeys, block_size: int) -> None:
        self._attach(BlockHasher(block_size, keys), keys.adapter)

    def _attach(self, hasher: BlockHasher, adapter: str | None) -> None:
        self._hasher = hasher
        self._block_size = hasher.block_size
        self.digests = hasher.digests
        self.adapter = adapter
        """The adapter whose KV the blocks hold."""

    def extend(self, token_ids: list[int], num_full: int) -> None:
        """Have digests for the first `num_full` blocks of `token_ids`. Earlier ones are not computed again."""
        num_done = len(self.digests)
        if num_full > num_done:
            self._hasher.extend(token_ids[num_done * self._block_size : num_full * self._block_size])

    def copy(self) -> "DigestChain":
        """A chain that continues on its own: choices of one request share a prompt, not their outputs."""
        twin = DigestChain.__new__(DigestChain)
        twin._attach(self._hasher.copy(), self.adapter)
        return twin
