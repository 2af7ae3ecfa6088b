"""The masks of a step: which tokens each constrained row may take, all filled in one call."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from quire_worker.grammar.matcher import Matcher, Verdict
from quire_worker.grammar.tokenizer import Words
from quire_worker.plan import TokenMasks

_MAX_THREADS = 8
_SLOW_FILL_S = 0.020
"""A fill that takes longer is followed by one that times each row."""
_DEAD_END = "the grammar and the request's other parameters together allow no token"


@dataclass(frozen=True, slots=True)
class MaskWanted:
    """A row that will be sampled."""

    row: int
    matcher: Matcher
    forbidden: tuple[int, ...] = ()
    """Tokens that may not come now whatever the grammar says."""


class MaskFiller:
    """Fills masks; owned by the thread that steps."""

    def __init__(self) -> None:
        self._executor: LLExecutor | None = None
        self._must_time_each = False

    def fill(self, wanted: Sequence[MaskWanted]) -> tuple[TokenMasks | None, list[Verdict | None]]:
        """Masks of the rows that go on, and for each of `wanted` whether its choice ends here instead."""
        num_words = -(-max(item.matcher.mask_bits for item in wanted) // 32)
        words = np.zeros((len(wanted), num_words), np.int32)
        start = time.perf_counter()
        if self._must_time_each or not self._fill_together(wanted, words):
            for index in range(len(wanted)):
                _fill_one(wanted[index].matcher, words, index)
        for index, item in enumerate(wanted):
            former = item.matcher.ll
            if item.matcher.verdict() is None and item.matcher.ll is not former:
                _fill_one(item.matcher, words, index)
        self._must_time_each = time.perf_counter() - start > _SLOW_FILL_S
        for index, item in enumerate(wanted):
            _forbid(words[index], item)
        allows_any: list[bool] = np.any(words, axis=1).tolist()
        verdicts = [_verdict(item.matcher, allows) for item, allows in zip(wanted, allows_any, strict=True)]
        kept = [index for index, verdict in enumerate(verdicts) if verdict is None]
        if not kept:
            return None, verdicts
        if len(kept) < len(wanted):
            words = words[kept]
        return TokenMasks(
            rows=[wanted[index].row for index in kept], bits=words.reshape(-1).view(np.uint8).data
        ), verdicts

    def _fill_together(self, wanted: Sequence[MaskWanted], words: Words) -> bool:
        """Whether it went well; llguidance raises only when it is misused."""
        if self._executor is None:
            self._executor = LLExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0))))
        try:
            fill_next_token_bitmask_par(
                self._executor, [(item.matcher.ll, index) for index, item in enumerate(wanted)], words
            )
        except Exception:  # noqa: BLE001 - one of them; filling each finds which
            return False
        return True


def _fill_one(matcher: Matcher, words: Words, index: int) -> None:
    start = time.thread_time()
    try:
        fill_next_token_bitmask(matcher.ll, words, index)
    except Exception as error:  # noqa: BLE001 - the library's faults are this choice's alone
        matcher.fail(type(error).__name__)
    matcher.charge(time.thread_time() - start)


def _forbid(mask: Words, item: MaskWanted) -> None:
    for token in item.forbidden:
        if token >> 5 < len(mask):
            mask[token >> 5] &= np.int32(~(1 << (token & 31)) if token & 31 != 31 else 0x7FFFFFFF)
    size = item.matcher.vocab_size
    if size < item.matcher.mask_bits:
        mask[-(-size // 32) :] = 0
        if size % 32:
            mask[size // 32] &= np.int32((1 << size % 32) - 1)


def _verdict(matcher: Matcher, allows_any: bool) -> Verdict | None:
    verdict = matcher.verdict()
    if verdict is not None or allows_any:
        return verdict
    if matcher.ll.is_accepting():
        return "stop"
    matcher.fail(_DEAD_END)
    return "error"
