"""What one simulated worker keeps of prompts, by the streams that they were made of: an LRU with references, in tokens.

The fast stand-in for BlockManager's cache: a stream's blocks are one entry, so a match costs as many look-ups as a chain has segments.
"""

from collections import OrderedDict
from collections.abc import Sequence

from quire_cli.simulate.request import Segment

Index = dict[str, dict[int, int]]
"""Stream -> worker -> position up to which it holds it: what the routers' index of KV events knows."""


class _Entry:
    __slots__ = ("end", "refs", "start")

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.refs = 0


class PrefixCache:
    """Of one worker. Positions are tokens from the prompt's beginning."""

    def __init__(self, worker: int, block_size: int, index: Index) -> None:
        self._worker = worker
        self._block_size = block_size
        self._index = index
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """Oldest use first."""
        self.total = 0
        """Tokens held."""
        self.pinned = 0
        """Of those, tokens that running requests use."""

    def match(self, chain: Sequence[Segment], most: int) -> int:
        """Leading tokens of the chain that are held, whole blocks, at most `most`."""
        position = 0
        for name, end in chain:
            entry = self._entries.get(name)
            if entry is None or entry.start > position:
                break
            position = min(entry.end, end)
            if position < end:
                break
        return min(position, most) // self._block_size * self._block_size

    def hold(self, chain: Sequence[Segment], matched: int) -> list[str]:
        """Keep the first `matched` tokens of the chain for a request. The streams to `drop` later."""
        held = []
        position = 0
        for name, end in chain:
            if position >= matched:
                break
            self._pin(name)
            held.append(name)
            position = end
        return held

    def store(self, chain: Sequence[Segment], length: int, held: list[str]) -> int:
        """The chain's first `length` tokens are computed; its last stream may reach further than the chain says. Streams that were
        not held yet are from now on. Returns the tokens that nobody had."""
        added = position = 0
        last = len(chain) - 1
        for place, (name, end) in enumerate(chain):
            stop = length if place == last else end
            entry = self._entries.get(name)
            if entry is None:
                entry = self._entries[name] = _Entry(position)
            if name not in held:
                self._pin(name)
                held.append(name)
            if stop > entry.end >= position:
                added += stop - entry.end
                self.pinned += stop - entry.end
                entry.end = stop
                self._index.setdefault(name, {})[self._worker] = stop
            position = stop
        self.total += added
        return added

    def drop(self, held: Sequence[str]) -> None:
        """A request no longer uses these streams."""
        for name in held:
            entry = self._entries[name]
            entry.refs -= 1
            if entry.refs == 0:
                self.pinned -= entry.end - entry.start

    def trim(self, most: int) -> None:
        """Forget what nobody uses, oldest first, until at most `most` tokens are held."""
        tries = len(self._entries)
        while self.total > most and tries and self.total > self.pinned:
            tries -= 1
            name, entry = next(iter(self._entries.items()))
            if entry.refs:
                self._entries.move_to_end(name)
            else:
                self._forget(name, entry)

    def clear(self) -> None:
        """The worker is gone."""
        for name in self._entries:
            self._unlist(name)
        self._entries.clear()

    def _pin(self, name: str) -> None:
        entry = self._entries[name]
        if entry.refs == 0:
            self.pinned += entry.end - entry.start
        entry.refs += 1
        self._entries.move_to_end(name)

    def _forget(self, name: str, entry: _Entry) -> None:
        del self._entries[name]
        self.total -= entry.end - entry.start
        self._unlist(name)

    def _unlist(self, name: str) -> None:
        holders = self._index.get(name)
        if holders is not None:
            holders.pop(self._worker, None)
            if not holders:
                del self._index[name]
