"""Prompts that were read, by their segments: what a prompt has in common with earlier ones is neither tokenised nor hashed again.

    root (bundle, adapter, salt) -> "<|im_start|>system\n You are ..." -> " words go on ..." -> "<|im_end|>\n..." -> ...

A step's place in the chain names it, so equal text after another beginning is another step. A step holds the hashes of the blocks that
became full in it, and the hasher that goes on from there. Bounded by bytes; what was not used for longest goes first, and steps behind a
forgotten one are never found again, so they go as well.

Knows no tokenizer: the caller encodes what is missing. Used from several threads.
"""

import contextlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

from quire_contract.block_hash import BlockHasher, wire_hash

STEP_BYTES = 900
"""A step without its text and hashes."""
HASH_BYTES = 40


class Step:
    """The prompt up to the end of one segment."""

    __slots__ = ("hasher", "hashes", "num_chars", "num_tokens", "number")

    def __init__(self, number: int, hasher: BlockHasher, hashes: Sequence[int], num_chars: int) -> None:
        self.number = number
        self.hasher = hasher
        """Goes on after the segment; shared, so fork it."""
        self.hashes = hashes
        """Wire hashes of the blocks that the segment filled."""
        self.num_tokens = hasher.num_tokens
        """From the prompt's beginning."""
        self.num_chars = num_chars
        """Of the segment."""


class PromptCache:
    """Steps by (step before, text). One for the process."""

    def __init__(self, *, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._steps: OrderedDict[tuple[int, Hashable], tuple[Step, int]] = OrderedDict()
        self._size_bytes = 0
        self._last_number = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """What the steps take, about."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._steps)

    def find(self, root: Hashable, segments: Iterator[str]) -> tuple[list[Step], str | None]:
        """The steps that are known of a prompt, first to last, the root's first; and the first segment that is not (None: all are).

        Takes no more of `segments` than that; nothing, if not even the root is known."""
        known = self._steps
        found = known.get((0, root))
        if found is None:
            return [], None
        steps, missing = [found[0]], None
        keys: list[tuple[int, Hashable]] = [(0, root)]
        for segment in segments:
            key: tuple[int, Hashable] = (steps[-1].number, segment)
            found = known.get(key)
            if found is None:
                missing = segment
                break
            steps.append(found[0])
            keys.append(key)
        for key in reversed(keys):  # a beginning is kept longer than what goes on from it
            with contextlib.suppress(KeyError):  # another thread has just put so much that it is gone
                known.move_to_end(key)
        return steps, missing

    def begin(self, root: Hashable, hasher: BlockHasher) -> Step:
        """Remember where prompts of one kind begin. `hasher` may have seen tokens that all begin with; it is the step's from now on."""
        return self._put((0, root), hasher, STEP_BYTES)

    def extend(self, before: Step, segment: str, token_ids: Sequence[int]) -> Step:
        """Remember a segment after a step, with its token ids. OverflowError for an id that is no uint32."""
        hasher = before.hasher.fork()
        hasher.extend(token_ids)
        return self._put((before.number, segment), hasher, STEP_BYTES + sys.getsizeof(segment))

    def _put(self, key: tuple[int, Hashable], hasher: BlockHasher, size_bytes: int) -> Step:
        num_chars = len(key[1]) if isinstance(key[1], str) else 0
        hashes = [wire_hash(digest) for digest in hasher.digests]
        hasher.drop_digests()
        size_bytes += HASH_BYTES * len(hashes)
        with self._lock:
            self._last_number += 1
            step = Step(self._last_number, hasher, hashes, num_chars)
            known = self._steps.get(key)
            if known is not None:  # two threads read the same prompt
                return known[0]
            self._steps[key] = (step, size_bytes)
            self._size_bytes += size_bytes
            while self._size_bytes > self._max_bytes and len(self._steps) > 1:
                self._size_bytes -= self._steps.popitem(last=False)[1][1]
        return step
