"""What happened to the prefix cache, in the order it happened. Plain values: the publisher turns them into wire structs.

Knows neither sockets nor the wire format.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Consecutive full blocks of one token sequence became findable in one group."""

    group: int
    digests: list[bytes]
    """32 bytes each; digests[i + 1] chains on digests[i]."""
    parent: bytes | None
    """Digest of the block before digests[0]; None at the start of a sequence."""
    token_ids: list[int]
    """len(digests) * block_size tokens."""
    adapter: str | None


@dataclass(frozen=True, slots=True)
class BlockEvicted:
    """A block's content is gone from one group."""

    group: int
    digest: bytes


CacheEvent = BlocksStored | BlockEvicted
