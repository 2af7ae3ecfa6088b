"""Which endpoint holds which blocks: from KV events, and from what this router sent lately.

Pure data structures: no sockets, no clocks (the caller passes the time), no tokens. Blocks are named by their wire hash (64 bits,
`quire_contract.block_hash.wire_hash`). A key carries no scheme: a lookup names the endpoints it may match, and the caller names only
those whose prompt bundle made the hashes, so hashes of one bundle are never compared with blocks of another.

Both classes have twins in C++ (`native/sources/kv_index.cpp`), which take less than half of the time and of the memory.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

SENT_TICK_S = 0.25
"""Times of what was sent are noted in steps of so much: a prefix that many requests share is written down once in each."""
_PART = 16
"""Blocks that are looked up together."""
_NEVER = float("-inf")
_NO_BLOCKS: frozenset[int] = frozenset()
_NO_TIMES: Mapping[int, float] = {}


class KvIndex:
    """What each endpoint said it holds. An entry is one (endpoint, block); each endpoint may use an even share of `max_blocks`.

    A full share refuses new entries and keeps the old ones: an LRU here would drop roots of long-lived prefixes first, and a prefix
    without its root matches nothing. What is refused only costs hits. An endpoint that has more than its share, from when there were fewer
    of them, keeps it until it evicts it: N that fill their shares one after the other hold 1 + 1/2 + ... + 1/N times `max_blocks` (8 times
    at 2,048), for a while. A newcomer without entries would be worse: it would get no traffic for its cache.
    """

    def __init__(self, *, max_blocks: int = 4_000_000) -> None:
        self._max_blocks = max_blocks
        self._holders: dict[int, int] = {}
        """Block hash -> bit set of slots: one small int for each block, however many endpoints hold it."""
        self._blocks: dict[str, set[int]] = {}
        self._bits: dict[str, int] = {}
        self._free_slots: list[int] = []
        self._refused = 0

    @property
    def num_entries(self) -> int:
        """(endpoint, block) pairs held now."""
        return sum(len(blocks) for blocks in self._blocks.values())

    @property
    def num_refused(self) -> int:
        """Entries not taken because the index was full, since the start."""
        return self._refused

    def num_blocks(self, endpoint_id: str) -> int:
        """Blocks known of one endpoint; 0 for an unknown one."""
        return len(self._blocks.get(endpoint_id, ()))

    def add(self, endpoint_id: str, hashes: Iterable[int]) -> None:
        """The endpoint stored these blocks. Blocks known already change nothing."""
        bit = self._bit_for(endpoint_id)
        blocks = self._blocks[endpoint_id]
        room = self._max_blocks // len(self._blocks) - len(blocks)
        holders = self._holders
        for block in hashes:
            if block in blocks:
                continue
            if room <= 0:
                self._refused += 1
                continue
            room -= 1
            blocks.add(block)
            holders[block] = holders.get(block, 0) | bit

    def remove(self, endpoint_id: str, hashes: Iterable[int]) -> None:
        """The endpoint evicted these blocks. Unknown ones are ignored: they may have been refused."""
        blocks = self._blocks.get(endpoint_id)
        if blocks is None:
            return
        bit = self._bits[endpoint_id]
        for block in hashes:
            if block in blocks:
                blocks.remove(block)
                self._unset(block, bit)

    def clear(self, endpoint_id: str) -> None:
        """Forget all of one endpoint (it restarted, left, or said so)."""
        blocks = self._blocks.pop(endpoint_id, None)
        if blocks is None:
            return
        bit = self._bits.pop(endpoint_id)
        self._free_slots.append(bit.bit_length() - 1)
        for block in blocks:
            self._unset(block, bit)

    def holds(self, endpoint_id: str, block: int) -> bool:
        """Whether the endpoint is known to hold the block."""
        return block in self._blocks.get(endpoint_id, _NO_BLOCKS)

    def match_prefix(self, hashes: Sequence[int], endpoint_ids: Collection[str]) -> dict[str, int]:
        """For each endpoint, how many leading blocks of `hashes` it holds without a hole. Endpoints with none are left out."""
        bits = self._bits
        alive = 0
        slots: dict[int, str] = {}
        for endpoint_id in endpoint_ids:
            bit = bits.get(endpoint_id)
            if bit is not None:
                alive |= bit
                slots[bit] = endpoint_id
        found: dict[str, int] = {}
        get = self._holders.get
        alive &= get(hashes[0], 0) if hashes else 0
        if not alive:
            return found
        depth = 0
        while depth < len(hashes):
            part = list(map(get, hashes[depth : depth + _PART]))
            first = part[0]
            if first is not None and first & alive == alive and part.count(first) == len(part):
                depth += len(part)  # all hold all of it
                continue
            for held in part:
                still = 0 if held is None else alive & held
                if still != alive:
                    _note_depth(found, alive & ~still, slots, depth)
                    alive = still
                    if not alive:
                        return found
                depth += 1
        _note_depth(found, alive, slots, depth)
        return found

    def _bit_for(self, endpoint_id: str) -> int:
        bit = self._bits.get(endpoint_id)
        if bit is None:
            slot = self._free_slots.pop() if self._free_slots else len(self._bits)
            bit = 1 << slot
            self._bits[endpoint_id] = bit
            self._blocks[endpoint_id] = set()
        return bit

    def _unset(self, block: int, bit: int) -> None:
        left = self._holders[block] & ~bit
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]


def _note_depth(found: dict[str, int], dropped: int, slots: dict[int, str], depth: int) -> None:
    while dropped:
        bit = dropped & -dropped
        found[slots[bit]] = depth
        dropped ^= bit


class SentIndex:
    """What this router sent to each endpoint, and when: for each endpoint a bounded number of block hashes, those that were sent last.

    Read with a short `max_age_s` it fills the gap between sending a prompt and the worker's event (so that a burst with one prefix does
    not scatter); read with a long one it is the approximate knowledge for endpoints without events. Times: seconds of a monotonic clock,
    up to SENT_TICK_S early.

    Hashes are chained: one names all blocks before it as well. So whoever was sent a block was sent those before it, no longer ago, and
    what goes first for want of room are ends of prompts. That lets a search halve the prompt instead of walking through it.
    """

    def __init__(self, *, max_blocks_per_endpoint: int = 49_152) -> None:
        self._max_blocks = max_blocks_per_endpoint
        self._sent: dict[str, dict[int, float]] = {}
        """Oldest first. When one is full, its older half goes at once: an OrderedDict could let single blocks go, but costs twice as much
        for each that comes."""

    def record(self, endpoint_id: str, hashes: Sequence[int], now_s: float) -> None:
        """A prompt with these blocks goes to the endpoint now."""
        sent = self._sent.get(endpoint_id)
        if sent is None:
            sent = self._sent[endpoint_id] = {}
        tick_s = now_s - now_s % SENT_TICK_S
        for block in reversed(hashes):
            known_s = sent.get(block)
            if known_s is not None:
                if known_s >= tick_s:
                    break  # and so were those before it
                del sent[block]
            sent[block] = tick_s
        if len(sent) > self._max_blocks:
            kept = min(self._max_blocks, max(self._max_blocks // 2, len(hashes)))
            self._sent[endpoint_id] = dict(islice(sent.items(), len(sent) - kept, None))

    def clear(self, endpoint_id: str) -> None:
        """Forget what was sent to one endpoint: it restarted, or left."""
        self._sent.pop(endpoint_id, None)

    def num_blocks(self, endpoint_id: str) -> int:
        """Blocks remembered for one endpoint."""
        return len(self._sent.get(endpoint_id, ()))

    def match_prefix(self, endpoint_id: str, hashes: Sequence[int], since_s: float) -> int:
        """Leading blocks of `hashes` all sent to the endpoint at `since_s` or later."""
        sent = self._sent.get(endpoint_id)
        return _num_sent(sent, hashes, since_s - SENT_TICK_S) if sent else 0

    def has(self, endpoint_id: str, block: int, since_s: float) -> bool:
        """Whether the block was sent to the endpoint at `since_s` or later."""
        return self._sent.get(endpoint_id, _NO_TIMES).get(block, _NEVER) >= since_s - SENT_TICK_S


def new_indexes(parts: Any, *, max_blocks: int) -> tuple[KvIndex, SentIndex]:
    """Both, or their twins where `parts` (`native.library.native`) has them."""
    if parts is None:
        return KvIndex(max_blocks=max_blocks), SentIndex()
    return parts.KvIndex(max_blocks=max_blocks), parts.SentIndex()


def _num_sent(sent: Mapping[int, float], hashes: Sequence[int], since_s: float) -> int:
    """Leading blocks of `hashes` noted at `since_s` or later."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high) // 2
        if sent.get(hashes[middle], _NEVER) >= since_s:
            low = middle + 1
        else:
            high = middle
    return low


def extend_match(
    index: KvIndex, sent: SentIndex, endpoint_id: str, hashes: Sequence[int], matched: int, since_s: float
) -> int:
    """The match from events, lengthened by blocks that were sent at `since_s` or later and are still being computed.

    `matched` leading blocks are held for sure; each following one counts while it is held or was just sent."""
    if matched >= len(hashes) or not sent.has(endpoint_id, hashes[matched], since_s):
        return matched
    depth = max(matched, sent.match_prefix(endpoint_id, hashes, since_s))
    while depth < len(hashes):
        block = hashes[depth]
        if not (index.holds(endpoint_id, block) or sent.has(endpoint_id, block, since_s)):
            break
        depth += 1
    return depth
