"""One choice's place in its grammar. Moves with committed tokens only, so preemption and plans in flight do not touch it."""

import time
from typing import Literal

from llguidance import LLMatcher

from quire_worker.grammar.tokenizer import GrammarTokenizer

SLOW_S = 0.010
"""Time of one operation beyond which it counts against the matcher's patience."""
PATIENCE_S = 0.5
"""So long may one choice's grammar hold up the steps of all, operations that are not slow left out."""
_TOO_SLOW = "the grammar takes too long for each token; make it less ambiguous"

Verdict = Literal["stop", "error"]


class CompiledGrammar:
    """A grammar that passed its trial. Gives each choice a matcher of its own."""

    def __init__(self, prototype: LLMatcher, tokenizer: GrammarTokenizer, size_bytes: int) -> None:
        """`prototype` stands at the beginning and never moves; `size_bytes` is an estimate."""
        self._prototype = prototype
        self._tokenizer = tokenizer
        self.size_bytes = size_bytes
        self.num_too_slow = 0
        """Matchers of it that ran out of patience."""

    def new_matcher(self, token_ids: tuple[int, ...] = ()) -> "Matcher":
        """For a choice that has produced `token_ids` already (a resumed one; else none)."""
        matcher = Matcher(self, self._prototype.deep_copy(), self._tokenizer)
        for token in token_ids:
            matcher.take(token)
        return matcher


class Matcher:
    """Follows one choice. Never raises for what a grammar or a token brings about: `failure` says it."""

    __slots__ = ("_grammar", "_patience_s", "failure", "ll", "mask_bits", "vocab_size")

    def __init__(self, grammar: CompiledGrammar, ll: LLMatcher, tokenizer: GrammarTokenizer) -> None:
        self._grammar = grammar
        self._patience_s = PATIENCE_S
        self.ll = ll
        self.vocab_size = tokenizer.vocab_size
        """Of the model's logits."""
        self.mask_bits = tokenizer.ll.vocab_size
        """Tokens in a mask, at least vocab_size."""
        self.failure: str | None = None
        """Why the choice cannot go on."""

    def take(self, token: int) -> Verdict | None:
        """Move over a committed token: "stop" if nothing can follow it, "error" (see `failure`) if the matcher cannot."""
        start = time.thread_time()
        try:
            self.ll.consume_token(token)
        except Exception as error:  # noqa: BLE001 - the library's faults are this choice's alone
            self.fail(f"{type(error).__name__}")
        self.charge(time.thread_time() - start)
        return self.verdict()

    def verdict(self) -> Verdict | None:
        """Whether the choice ends here, and how."""
        if self.failure is None and self.ll.is_error():
            self.fail(describe(self.ll.get_error()))
        if self.failure is not None:
            return "error"
        return "stop" if self.ll.is_stopped() else None

    def charge(self, time_s: float) -> None:
        """An operation took so long, of processor time."""
        if time_s <= SLOW_S:
            return
        self._patience_s -= time_s
        if self._patience_s < 0 and self.failure is None:
            self._grammar.num_too_slow += 1
            self.fail(_TOO_SLOW)

    def fail(self, reason: str) -> None:
        """The choice cannot go on; the first reason counts."""
        if self.failure is None:
            self.failure = reason


def describe(message: str) -> str:
    """llguidance's words in one short line, without the parser's state and the text's excerpts."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [line for index, line in enumerate(lines) if index == 0 or line.startswith("error:")]
    if len(kept) > 1:  # the regular expression's own report follows a quotation of all of it
        kept = ["invalid regular expression", *(line.removeprefix("error:").strip() for line in kept[1:])]
    text = ": ".join(kept) or "unknown"
    return text if len(text) <= 400 else text[:400] + "..."
