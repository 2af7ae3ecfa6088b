"""Answers that are kept in the router's memory: the least recently used go first, of the tenant that has the most.

No tenant can push the others' answers out: what does not fit is taken from whoever takes up most.
"""

import heapq
from collections import OrderedDict

import msgspec
from multidict import CIMultiDict

ENTRY_BYTES = 1024
"""Counted for each answer beside its body: headers, keys, the objects themselves."""
SPARE = 64
"""What has become useless of the heap may be so much, and twice as much as what is of use, before it is made anew."""


class ModelVersion(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a worker runs, as far as the router knows. Answers of one version may be another one's mistake."""

    service: str
    revision: str
    bundle: str
    """Digest of its prompt bundle; empty: it has none."""


class StoredAnswer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A whole answer with status 200."""

    stored_ts: float
    """Unix time in seconds."""
    target: str
    """The model that gave it."""
    version: ModelVersion
    is_events: bool
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def num_bytes(self) -> int:
        """As it counts against bounds."""
        return len(self.body) + ENTRY_BYTES

    def header_map(self) -> CIMultiDict[str]:
        """A copy of its headers."""
        return CIMultiDict(self.headers)


class AnswerMemory:
    """Bounded by bytes. `group`: a tenant's id; everybody without a tenant is one group."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._groups: dict[str, OrderedDict[bytes, StoredAnswer]] = {}
        self._sizes: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        """Sizes, negated, and their groups. Each group has an entry that shows no less than it takes."""
        self.num_bytes = 0

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def resize(self, max_bytes: int) -> None:
        """Another bound from now on."""
        self._max_bytes = max_bytes
        self._shrink()

    def get(self, group: str, key: bytes) -> StoredAnswer | None:
        """The answer, which is the most recently used one then."""
        answers = self._groups.get(group)
        found = None if answers is None else answers.get(key)
        if answers is not None and found is not None:
            answers.move_to_end(key)
        return found

    def put(self, group: str, key: bytes, answer: StoredAnswer) -> None:
        """Keep it, unless it is larger than all that may be kept."""
        self.drop(group, key)
        if answer.num_bytes > self._max_bytes:
            return
        self._groups.setdefault(group, OrderedDict())[key] = answer
        self._count(group, answer.num_bytes)
        self._shrink()

    def drop(self, group: str, key: bytes) -> None:
        """Forget it, if it is there."""
        answers = self._groups.get(group)
        found = None if answers is None else answers.pop(key, None)
        if found is not None:
            self._count(group, -found.num_bytes)

    def _shrink(self) -> None:
        while self.num_bytes > self._max_bytes:
            largest = self._largest()
            _, dropped = self._groups[largest].popitem(last=False)
            self._count(largest, -dropped.num_bytes)

    def _largest(self) -> str:
        while True:
            shown, group = self._heap[0]
            size = self._sizes.get(group)
            if size == -shown:
                return group
            if size is None:
                heapq.heappop(self._heap)
            else:
                heapq.heapreplace(self._heap, (-size, group))

    def _count(self, group: str, change: int) -> None:
        self.num_bytes += change
        self._sizes[group] = self._sizes.get(group, 0) + change
        if not self._groups.get(group):
            self._groups.pop(group, None)
            self._sizes.pop(group, None)
        elif change > 0:
            heapq.heappush(self._heap, (-self._sizes[group], group))
            if len(self._heap) > 2 * len(self._sizes) + SPARE:
                self._heap = [(-size, name) for name, size in self._sizes.items()]
                heapq.heapify(self._heap)
