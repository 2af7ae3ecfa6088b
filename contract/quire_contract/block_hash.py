"""The hash that names a full block of tokens: a chain of SHA-256 digests, the same in every router and worker.

Byte layout of scheme `quire-sha256-v1` (all integers unsigned 32-bit little-endian):

    root    = SHA256("quire-sha256-v1")
    block_i = SHA256( parent           32 bytes: block_{i-1}, or root for block 0
                    | num_tokens       4 bytes
                    | tokens           4 bytes each
                    | num_keys         4 bytes
                    | for each key:    4 bytes length, then that many bytes of UTF-8 )

Extra keys, in this order: "adapter=<name>" in every block of a request that uses an adapter, then "salt=<cache salt>" in the first
block only (the chain carries it on). Only full blocks are hashed. Engines match all 32 bytes; on the wire a block is its
digest's low 64 bits (`wire_hash`).

Any change here is a new SCHEME: routers hash for an endpoint only under the scheme that its prompt bundle names.
Knows token ids only: no text, no model, no cache.
"""

import struct
import sys
from array import array
from collections.abc import Sequence
from hashlib import sha256

import msgspec

SCHEME = "quire-sha256-v1"
DIGEST_SIZE_BYTES = 32
TOKEN_SIZE_BYTES = 4


class ExtraKeys(msgspec.Struct, frozen=True, gc=False):
    """What besides tokens decides whether two requests may share KV."""

    adapter: str | None = None
    """Adapter whose weights made the KV; in every block."""
    cache_salt: str | None = None
    """Separates those who must not see each other's prefixes; in the first block only."""

    def of_block(self, index: int) -> tuple[str, ...]:
        """Extra keys of the block at `index` (0 is the request's first)."""
        keys: tuple[str, ...] = () if self.adapter is None else (f"adapter={self.adapter}",)
        if index == 0 and self.cache_salt is not None:
            keys += (f"salt={self.cache_salt}",)
        return keys


NO_KEYS = ExtraKeys()


def root_digest() -> bytes:
    """Parent of every first block: SHA-256 of the scheme's name."""
    return sha256(SCHEME.encode()).digest()


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian uint32. OverflowError for an id outside [0, 2**32)."""
    packed = array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _encode_keys(extra_keys: tuple[str, ...]) -> bytes:
    parts = [_u32(len(extra_keys))]
    for key in extra_keys:
        encoded = key.encode()
        parts += (_u32(len(encoded)), encoded)
    return b"".join(parts)


def hash_block(parent: bytes, token_ids: Sequence[int], extra_keys: tuple[str, ...] = ()) -> bytes:
    """Digest (32 bytes) of the block that holds `token_ids` after the block `parent` (`root_digest()` for the first)."""
    assert len(parent) == DIGEST_SIZE_BYTES, "a parent is a whole digest, not a wire hash"
    return sha256(parent + _u32(len(token_ids)) + token_bytes(token_ids) + _encode_keys(extra_keys)).digest()


def hash_blocks(token_ids: Sequence[int], block_size: int, keys: ExtraKeys = NO_KEYS) -> list[bytes]:
    """Digests of the full blocks of `token_ids`, first to last; tokens of a last partial block count for nothing."""
    return BlockHasher(block_size, keys).extend(token_ids)


def wire_hash(digest: bytes) -> int:
    """The digest's low 64 bits, unsigned: how events name a block."""
    return int.from_bytes(digest[-8:], "big")


class BlockHasher:
    """Hashes a growing sequence of tokens: each full block once, as soon as it is full.

    Gives the same digests however the tokens are cut into calls: `BlockHasher(b, k).extend(t) == hash_blocks(t, b, k)`.
    """

    __slots__ = ("_head", "_keys", "_num_before", "_parent", "_partial", "_tail", "block_size", "digests")

    def __init__(self, block_size: int, keys: ExtraKeys = NO_KEYS) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {block_size}")
        self.block_size = block_size
        self.digests: list[bytes] = []
        """Of all full blocks so far. Read it, never change it."""
        self._keys = keys
        self._head = _u32(block_size)
        self._tail = _encode_keys(keys.of_block(0))
        self._parent = root_digest()
        self._partial = b""
        self._num_before = 0

    @property
    def num_tokens(self) -> int:
        """Tokens seen, those of the partial block included."""
        return self._num_before + len(self.digests) * self.block_size + len(self._partial) // TOKEN_SIZE_BYTES

    def extend(self, token_ids: Sequence[int]) -> list[bytes]:
        """Add tokens; returns the digests of the blocks that became full. OverflowError for an id that is no uint32."""
        data = self._partial + token_bytes(token_ids)
        size = self.block_size * TOKEN_SIZE_BYTES
        full = len(data) - len(data) % size
        new = [self._hash_next(data[start : start + size]) for start in range(0, full, size)]
        self._partial = data[full:]
        return new

    def append(self, token_id: int) -> bytes | None:
        """Add one token; returns the digest of the block that it filled, if it filled one."""
        self._partial += _u32(token_id)
        if len(self._partial) < self.block_size * TOKEN_SIZE_BYTES:
            return None
        data, self._partial = self._partial, b""
        return self._hash_next(data)

    def copy(self) -> "BlockHasher":
        """An independent hasher that goes on from here: for choices that share a prompt."""
        other = BlockHasher(self.block_size, self._keys)
        other.digests = self.digests.copy()
        other._parent, other._partial, other._tail = self._parent, self._partial, self._tail
        other._num_before = self._num_before
        return other

    def fork(self) -> "BlockHasher":
        """As `copy`, but its digests are only those of blocks to come: for whoever keeps those before it already."""
        other = BlockHasher.__new__(BlockHasher)
        other.block_size, other._keys, other._head, other._tail = self.block_size, self._keys, self._head, self._tail
        other._parent, other._partial, other._num_before = self._parent, self._partial, self._num_before
        other.digests = []
        if self.digests:
            other._num_before += len(self.digests) * self.block_size
        return other

    def drop_digests(self) -> None:
        """Forget the digests so far, for whoever has noted them; those to come chain on them as before."""
        self._num_before += len(self.digests) * self.block_size
        self.digests = []

    def _hash_next(self, data: bytes) -> bytes:
        digest = sha256(b"".join((self._parent, self._head, data, self._tail))).digest()
        if not self.digests:
            self._tail = _encode_keys(self._keys.of_block(1))
        self.digests.append(digest)
        self._parent = digest
        return digest


class BlockChain:
    """Where the hashes of a sequence stand after some of its tokens. Never changes: what goes on from it is another chain.

    For whoever keeps many beginnings and needs of each block its name only.
    """

    __slots__ = ("_parent", "_partial", "_rule", "num_tokens")

    def __init__(self, rule: tuple[int, bytes, bytes, bytes], parent: bytes, partial: bytes, num_tokens: int) -> None:
        self._rule = rule
        """Bytes of a block's tokens; what stands before them, after those of the first block, and after those of any other."""
        self._parent = parent
        self._partial = partial
        self.num_tokens = num_tokens
        """Tokens so far, those of a last partial block included."""

    @classmethod
    def start(cls, block_size: int, keys: ExtraKeys = NO_KEYS) -> "BlockChain":
        """Before the first token."""
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {block_size}")
        first, other = _encode_keys(keys.of_block(0)), _encode_keys(keys.of_block(1))
        return cls((block_size * TOKEN_SIZE_BYTES, _u32(block_size), first, other), root_digest(), b"", 0)

    def extend(self, packed: bytes) -> tuple[Sequence[int], "BlockChain"]:
        """Wire hashes of the blocks that the tokens fill, and the chain after them. `packed` as `token_bytes` gives them."""
        size, head, first, other = rule = self._rule
        data = self._partial + packed
        num_tokens = self.num_tokens + len(packed) // TOKEN_SIZE_BYTES
        if len(data) < size:
            return (), BlockChain(rule, self._parent, data, num_tokens)
        tail = other if self.num_tokens * TOKEN_SIZE_BYTES >= size else first
        parent, digests = self._parent, []
        full = len(data) - len(data) % size
        for start in range(0, full, size):
            parent = sha256(parent + head + data[start : start + size] + tail).digest()
            digests.append(parent)
            tail = other
        return _wire_hashes(digests), BlockChain(rule, parent, data[full:], num_tokens)


def wire_hashes(digests: Sequence[bytes]) -> list[int]:
    """`wire_hash` of each digest."""
    return list(_wire_hashes(digests))


def _wire_hashes(digests: Sequence[bytes]) -> tuple[int, ...]:
    return struct.unpack(">" + "24xQ" * len(digests), b"".join(digests))
