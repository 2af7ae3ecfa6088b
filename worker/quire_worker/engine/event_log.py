"""What has been published about the prefix cache: numbered batches for replay, and the state they add up to for snapshots.

The state is built from the published batches alone, so a snapshot is consistent with its sequence number by construction.
Pure data: no sockets, threads or clocks.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from quire_contract.block_hash import wire_hash
from quire_contract.kv_events import BlockRemoved, BlockStored, KVEvent, KVEventBatch, encode_batch, first_batch
from quire_worker.kv.events import BlockEvicted, BlocksStored, CacheEvent

MAX_REPLAY_BATCHES = 10_000
_MAX_SNAPSHOT_EVENTS = 1_000
_MEDIUM = "GPU"


@dataclass(frozen=True, slots=True)
class _Held:
    """A block that readers know of."""

    parent: bytes | None
    adapter: str | None
    token_ids: list[int]


class EventLog:
    """Batches of one epoch."""

    def __init__(self, epoch: str, block_size: int, *, with_token_ids: bool = False) -> None:
        self._epoch = epoch
        self._block_size = block_size
        self._with_token_ids = with_token_ids
        self._held: dict[tuple[int, bytes], _Held] = {}
        self._batches: deque[tuple[int, bytes]] = deque(maxlen=MAX_REPLAY_BATCHES)
        self.last_seq = -1
        """Of the last batch; -1 before the first."""

    def start(self, now_s: float) -> tuple[int, bytes]:
        """Batch 0: this epoch holds nothing yet. Returns (sequence, payload)."""
        return self._append(encode_batch(first_batch(now_s, self._epoch)))

    def append(self, events: Iterable[CacheEvent], now_s: float) -> tuple[int, bytes]:
        """One batch more. Returns (sequence, payload)."""
        wire = []
        for kind, run in [(kind, list(run)) for kind, run in groupby(events, type)]:
            wire += self._stored(run) if kind is BlocksStored else self._removed(run)
        return self._append(self._encode(wire, now_s))

    def since(self, seq: int) -> list[tuple[int, bytes]]:
        """(sequence, payload) of the batches still kept from `seq` on. A reader that misses the first ones asks for a snapshot."""
        if not self._batches:
            return []
        return list(self._batches)[max(0, seq - self._batches[0][0]) :]

    def snapshot(self, now_s: float) -> list[bytes]:
        """Payloads that together store everything held after batch `last_seq`, parents before children. At least one."""
        events = [self._chain_event(group, chain) for group, chain in self._chains()]
        chunks = [events[i : i + _MAX_SNAPSHOT_EVENTS] for i in range(0, len(events), _MAX_SNAPSHOT_EVENTS)]
        return [self._encode(chunk, now_s) for chunk in chunks or [[]]]

    def _append(self, payload: bytes) -> tuple[int, bytes]:
        self.last_seq += 1
        self._batches.append((self.last_seq, payload))
        return self.last_seq, payload

    def _encode(self, events: list[KVEvent], now_s: float) -> bytes:
        return encode_batch(KVEventBatch(ts=now_s, events=events, epoch=self._epoch))

    def _stored(self, run: Iterable[CacheEvent]) -> list[KVEvent]:
        events: list[KVEvent] = []
        for event in run:
            assert isinstance(event, BlocksStored)
            parent = event.parent
            for index, digest in enumerate(event.digests):
                tokens = event.token_ids[index * self._block_size : (index + 1) * self._block_size]
                self._held[event.group, digest] = _Held(parent, event.adapter, tokens if self._with_token_ids else [])
                parent = digest
            events.append(self._store_event(event.group, event.digests, event.parent, event.adapter, event.token_ids))
        return events

    def _removed(self, run: Iterable[CacheEvent]) -> list[KVEvent]:
        """Evictions in a row become one event for each group."""
        digests: dict[int, list[int]] = {}
        for event in run:
            assert isinstance(event, BlockEvicted)
            self._held.pop((event.group, event.digest), None)
            digests.setdefault(event.group, []).append(wire_hash(event.digest))
        return [
            BlockRemoved(block_hashes=hashes, medium=_MEDIUM, group_idx=group or None)
            for group, hashes in digests.items()
        ]

    def _store_event(
        self, group: int, digests: list[bytes], parent: bytes | None, adapter: str | None, token_ids: list[int]
    ) -> BlockStored:
        return BlockStored(
            block_hashes=[wire_hash(digest) for digest in digests],
            parent_block_hash=None if parent is None else wire_hash(parent),
            token_ids=token_ids if self._with_token_ids else [],
            block_size=self._block_size,
            lora_id=None,
            medium=_MEDIUM,
            lora_name=adapter,
            group_idx=group or None,
        )

    def _chain_event(self, group: int, chain: list[bytes]) -> KVEvent:
        held = [self._held[group, digest] for digest in chain]
        tokens = [token for block in held for token in block.token_ids]
        return self._store_event(group, chain, held[0].parent, held[0].adapter, tokens)

    def _chains(self) -> list[tuple[int, list[bytes]]]:
        """Every held block once, as (group, parent to child); a chain begins with a block whose parent is not held or has another
        child. Blocks whose parent comes later in `_held` (it was evicted and stored again) are put after it."""
        chains: list[tuple[int, list[bytes]]] = []
        by_tail: dict[tuple[int, bytes | None], list[bytes]] = {}
        given: set[tuple[int, bytes]] = set()
        for group, digest in self._held:
            for block in self._new_ancestors(group, digest, given):
                chain = by_tail.pop((group, self._held[group, block].parent), None)
                if chain is None:
                    chain = []
                    chains.append((group, chain))
                chain.append(block)
                by_tail[group, block] = chain
        return chains

    def _new_ancestors(self, group: int, digest: bytes, given: set[tuple[int, bytes]]) -> list[bytes]:
        """`digest` and what comes before it in its sequence, as far as held and not yet `given`; the first one first."""
        path: list[bytes] = []
        block: bytes | None = digest
        while block is not None and (group, block) in self._held and (group, block) not in given:
            given.add((group, block))
            path.append(block)
            block = self._held[group, block].parent
        return path[::-1]


def net_effect(events: Iterable[CacheEvent], block_size: int) -> list[CacheEvent]:
    """Fewer events with the same outcome: the last word on every block, evictions first, stores in order.

    Bounds what waits for a publisher that does not keep up by the number of blocks instead of by time."""
    last: dict[tuple[int, bytes], CacheEvent] = {}
    for event in events:
        for single in _singles(event, block_size):
            key = (single.group, single.digest if isinstance(single, BlockEvicted) else single.digests[0])
            last.pop(key, None)
            last[key] = single
    evicted = [event for event in last.values() if isinstance(event, BlockEvicted)]
    return [*evicted, *(event for event in last.values() if isinstance(event, BlocksStored))]


def _singles(event: CacheEvent, block_size: int) -> Iterator[CacheEvent]:
    if isinstance(event, BlockEvicted):
        yield event
        return
    parent = event.parent
    for index, digest in enumerate(event.digests):
        tokens = event.token_ids[index * block_size : (index + 1) * block_size]
        yield BlocksStored(event.group, [digest], parent, tokens, event.adapter)
        parent = digest
