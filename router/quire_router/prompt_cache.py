"""Prompts that were read, by their segments: what a prompt has in common with earlier ones is neither tokenised nor hashed again.

    root (bundle, adapter, salt) -> "<|im_start|>system\n You are ..." -> " words go on ..." -> "<|im_end|>\n..." -> ...

A step's place in the chain names it, so equal text after another beginning is another step. A step holds the hashes of the blocks that
became full in it, and the chain that goes on from there. A way over several steps that was taken again can be remembered as one (`join`).
Bounded by bytes; what was not used for longest goes first, and steps behind a forgotten one are never found again, so they go as well.

Knows no tokenizer: the caller encodes what is missing. Used from several threads.
"""

import contextlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

from quire_contract.block_hash import BlockChain

STEP_BYTES = 650
"""A step without its text and hashes."""
HASH_BYTES = 40
TOUCH_SHARE = 16
"""A step counts as just used until as many others have come as this part of all: to note each use would cost more than it tells."""

Key = tuple[Hashable, ...]


class Step:
    """The prompt up to the end of one segment, or of several that are found as one."""

    __slots__ = ("chain", "hashes", "key", "num_chars", "number", "size_bytes", "used")

    def __init__(
        self, key: Key, number: int, chain: BlockChain, hashes: Sequence[int], num_chars: int, size_bytes: int
    ) -> None:
        self.key = key
        self.number = number
        """The place that it leads to."""
        self.chain = chain
        """Goes on after the segment."""
        self.hashes = hashes
        """Wire hashes of the blocks that the segment filled."""
        self.num_chars = num_chars
        """Of the segment."""
        self.size_bytes = size_bytes
        self.used = 0
        """How many steps there had been when it was last moved to the end of the line."""

    @property
    def num_tokens(self) -> int:
        """From the prompt's beginning."""
        return self.chain.num_tokens


class PromptCache:
    """Steps by (step before, text). One for the process."""

    def __init__(self, *, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._steps: OrderedDict[Key, Step] = OrderedDict()
        self._size_bytes = 0
        self._last_number = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """What the steps take, about."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._steps)

    def root(self, root: Hashable) -> Step | None:
        """Where prompts of one kind begin, if that is known."""
        return self._steps.get((0, root))

    def after(self, before: Step, text: str, following: str) -> Step | None:
        """The step that `join` named by these, if it is known."""
        return self._steps.get((before.number, text, following))

    def follow(self, steps: list[Step], segments: Iterator[str]) -> str | None:
        """Add to `steps`, the last of which is where `segments` begin, those that are known; the first segment that is not (None: all are).

        Takes no more of `segments` than that."""
        known = self._steps
        number = steps[-1].number
        for segment in segments:
            found = known.get((number, segment))
            if found is None:
                return segment
            steps.append(found)
            number = found.number
        return None

    def touch(self, steps: Sequence[Step]) -> None:
        """A prompt's steps, first to last, were used."""
        if self._last_number - steps[-1].used < len(self._steps) // TOUCH_SHARE:
            return
        for step in reversed(steps):  # a beginning is kept longer than what goes on from it
            with contextlib.suppress(KeyError):  # another thread has just put so much that it is gone
                self._steps.move_to_end(step.key)
                step.used = self._last_number

    def begin(self, root: Hashable, hashes: Sequence[int], chain: BlockChain) -> Step:
        """Remember where prompts of one kind begin. `chain` may have tokens that all begin with, and `hashes` of their blocks."""
        return self._put(Step((0, root), 0, chain, hashes, 0, STEP_BYTES))

    def extend(self, before: Step, segment: str, packed: bytes) -> Step:
        """Remember a segment after a step, with its token ids."""
        hashes, chain = before.chain.extend(packed)
        size_bytes = STEP_BYTES + sys.getsizeof(segment) + HASH_BYTES * len(hashes)
        return self._put(Step((before.number, segment), 0, chain, hashes, len(segment), size_bytes))

    def join(self, before: Step, steps: Sequence[Step], text: str, following: str) -> Step:
        """Remember the way over `steps` after `before` as what `text` leads to where `following` comes next. These must say that it is."""
        hashes = [block for step in steps for block in step.hashes]
        last = steps[-1]
        size_bytes = STEP_BYTES + sys.getsizeof(text) + HASH_BYTES * len(hashes)
        return self._put(Step((before.number, text, following), last.number, last.chain, hashes, len(text), size_bytes))

    def _put(self, step: Step) -> Step:
        with self._lock:
            known = self._steps.get(step.key)
            if known is not None:  # two threads read the same prompt
                return known
            self._last_number = step.used = self._last_number + 1
            if not step.number:
                step.number = step.used
            self._steps[step.key] = step
            self._size_bytes += step.size_bytes
            while self._size_bytes > self._max_bytes and len(self._steps) > 1:
                self._size_bytes -= self._steps.popitem(last=False)[1].size_bytes
        return step
