"""Compiles grammars in threads and keeps them. The engine's loop asks, goes on stepping, and collects what is ready.

    start(text) ── trial in a process of its own ── compile here ──> collect()     wake_fd becomes readable

Texts are known by their digest; what was refused is remembered too. Must not know requests.
"""

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from quire_worker.grammar.limits import COMPILE_STACK_BYTES, GrammarLimits
from quire_worker.grammar.matcher import CompiledGrammar
from quire_worker.grammar.tokenizer import GrammarTokenizer
from quire_worker.grammar.trial import Trial, TrialBrokenError

log = logging.getLogger(__name__)

_MAX_TOO_SLOW = 3
"""After so many of its matchers ran out of patience a grammar is refused."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A grammar that will not be obeyed."""

    message: str
    is_for_good: bool = True
    """The same text would be refused again."""


Outcome = CompiledGrammar | Refused


class GrammarCounters:
    """Totals since the compiler was made."""

    def __init__(self) -> None:
        self.num_hits = 0
        """Requests whose grammar was there already."""
        self.num_refused = 0
        """Requests refused for their grammar."""
        self.compile_time_s: list[float] = []
        """Of each grammar compiled or refused, its trial included; the reader empties it."""


class GrammarCompiler:
    """Owned by the engine's loop; its threads end with the process."""

    def __init__(self, folder: Path, tokenizer: GrammarTokenizer, limits: GrammarLimits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._known: OrderedDict[bytes, Outcome] = OrderedDict()
        """Least recently used first."""
        self._known_bytes = 0
        self._under_way: set[bytes] = set()
        self._texts: SimpleQueue[tuple[bytes, str] | None] = SimpleQueue()
        self._done: deque[tuple[bytes, Outcome, float]] = deque()
        self._trials = [Trial(folder, tokenizer.vocab_size, limits) for _ in range(limits.num_threads)]
        self._num_threads = 0
        self.wake_fd, self._wake_write_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(self._wake_write_fd, False)
        self.counters = GrammarCounters()

    def find(self, digest: bytes) -> Outcome | None:
        """What is known of a text; None if it must be compiled, for the first time or again."""
        outcome = self._known.get(digest)
        if outcome is None:
            return None
        if isinstance(outcome, CompiledGrammar):
            if outcome.num_too_slow >= _MAX_TOO_SLOW:
                return Refused("takes too long for each token; make it less ambiguous")
            if outcome.is_worn:
                return None
        self._known.move_to_end(digest)
        return outcome

    def start(self, digest: bytes, text: str) -> bool:
        """Compile a text, unless that is under way. Whether there was room."""
        if digest in self._under_way:
            return True
        if len(self._under_way) >= self._limits.max_waiting:
            return False
        self._under_way.add(digest)
        self._start_thread()
        self._texts.put((digest, text))
        return True

    def forget(self, digest: bytes) -> None:
        """Nobody waits for the text any more: if its turn has not come it is not compiled, and others' turns come sooner."""
        self._under_way.discard(digest)

    def collect(self) -> list[tuple[bytes, Outcome]]:
        """What became ready since the last call."""
        if not self._done:
            return []
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)
        ready = []
        while self._done:
            digest, outcome, time_s = self._done.popleft()
            self._under_way.discard(digest)
            self.counters.compile_time_s.append(time_s)
            if not (isinstance(outcome, Refused) and not outcome.is_for_good):
                self._remember(digest, outcome)
            ready.append((digest, outcome))
        return ready

    def close(self) -> None:
        """End what is under way; nothing may be asked afterwards."""
        for trial in self._trials:
            trial.close()
        for _ in range(self._num_threads):
            self._texts.put(None)

    def _remember(self, digest: bytes, outcome: Outcome) -> None:
        former = self._known.pop(digest, None)
        if former is not None:
            self._known_bytes -= _size_of(former)
        self._known[digest] = outcome
        self._known_bytes += _size_of(outcome)
        while len(self._known) > 1 and (
            self._known_bytes > self._limits.cache_bytes or len(self._known) > self._limits.max_cached
        ):
            _, dropped = self._known.popitem(last=False)
            self._known_bytes -= _size_of(dropped)

    def _start_thread(self) -> None:
        """One more, if all are busy and more are allowed: most engines never see a grammar."""
        if self._num_threads >= min(len(self._under_way), len(self._trials)):
            return
        trial = self._trials[self._num_threads]
        self._num_threads += 1
        former = threading.stack_size(COMPILE_STACK_BYTES)
        try:
            threading.Thread(target=self._work, args=(trial,), name="grammar", daemon=True).start()
        finally:
            threading.stack_size(former)

    def _work(self, trial: Trial) -> None:
        while (item := self._texts.get()) is not None:
            digest, text = item
            if digest not in self._under_way:
                continue
            start = time.perf_counter()
            try:
                outcome = self._compile(text, trial)
            except Exception as error:  # the thread must live: others' grammars wait behind this one
                log.exception("grammar failed digest=%s", digest.hex()[:16])
                outcome = Refused(f"cannot be compiled: {type(error).__name__}", is_for_good=False)
            time_s = time.perf_counter() - start
            log.info(
                "grammar digest=%s size_bytes=%d compiled=%s time_ms=%.1f",
                digest.hex()[:16], len(text), isinstance(outcome, CompiledGrammar), time_s * 1e3,
            )  # fmt: skip
            self._done.append((digest, outcome, time_s))
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_write_fd, b"\0")

    def _compile(self, text: str, trial: Trial) -> Outcome:
        if len(text) > self._limits.max_text_bytes:
            return Refused(f"is longer than {self._limits.max_text_bytes} characters")
        try:
            refusal = trial.refusal_of(text)
        except TrialBrokenError as error:
            return Refused(str(error), is_for_good=False)
        if refusal is not None:
            return Refused(refusal)
        compiled = CompiledGrammar(text, self._tokenizer)
        return compiled if compiled.error is None else Refused(compiled.error)


def digest_of(text: str) -> bytes:
    """Names a text."""
    return hashlib.sha256(text.encode()).digest()


def _size_of(outcome: Outcome) -> int:
    return outcome.size_bytes if isinstance(outcome, CompiledGrammar) else len(outcome.message) + 256
