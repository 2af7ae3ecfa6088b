"""One choice's place in its grammar. Moves with committed tokens only, so preemption and plans in flight do not touch it."""

import time
from collections.abc import Sequence
from typing import Literal

from llguidance import LLMatcher

from quire_worker.grammar.limits import parser_limits
from quire_worker.grammar.tokenizer import GrammarTokenizer

SLOW_S = 0.010
"""Time of one operation beyond which it counts against the matcher's patience."""
PATIENCE_S = 0.5
"""So long may one choice's grammar hold up the steps of all, operations that are not slow left out."""
_WORN = "too many states"
"""In llguidance's words, a lexer that is full."""
_RENEWAL_TOKENS = 64
"""A lexer that is full sooner, with one choice in it, is no use."""
_MAX_RENEWAL_S = 0.030
"""A grammar that takes longer to compile is not compiled again between steps."""
_BASE_BYTES = 64 * 2**10
_BYTES_PER_CHARACTER = 200
"""What compiled grammars were seen to take, at most, before they learn of the lexer."""
_BYTES_PER_COMPILE_S = 100 * 2**20
"""What those whose expressions are worked out at once (multipleOf, above all) were seen to take, at most, for each second of compiling."""
_CHEAP_S = 0.005
_TOO_SLOW = "the grammar takes too long for each token; make it less ambiguous"

Verdict = Literal["stop", "error"]


class CompiledGrammar:
    """A grammar that passed its trial. Gives each choice a matcher of its own.

    What the matchers of one prototype learn of the lexer they share, and llguidance bounds its states for all of them together: a prototype
    wears out. Then a matcher goes on with one of its own, and the compiler makes a new one for the requests to come."""

    def __init__(self, text: str, tokenizer: GrammarTokenizer) -> None:
        """Compiles `text`; `error` says if it cannot be. The interpreter lock is free meanwhile."""
        self._text = text
        self._tokenizer = tokenizer
        start = time.thread_time()
        self._prototype = self._compile()
        self._compile_time_s = time.thread_time() - start
        self.error = describe(self._prototype.get_error()) if self._prototype.is_error() else None
        self.size_bytes = (
            _BASE_BYTES
            + _BYTES_PER_CHARACTER * len(text)
            + int(_BYTES_PER_COMPILE_S * max(0.0, self._compile_time_s - _CHEAP_S))
        )
        """An estimate."""
        self.num_too_slow = 0
        """Matchers of it that ran out of patience."""
        self.is_worn = False
        """The lexer is full: make another one for new requests."""

    def new_matcher(self, token_ids: Sequence[int] = ()) -> "Matcher":
        """For a choice that has produced `token_ids` already (a resumed one; else none)."""
        matcher = Matcher(self, self._prototype.deep_copy(), self._tokenizer)
        for token in token_ids:
            matcher.take(token)
        return matcher

    def renewed(self, token_ids: list[int]) -> LLMatcher | None:
        """A matcher behind these tokens that shares nothing; None if making it takes too long."""
        self.is_worn = True
        if self._compile_time_s > _MAX_RENEWAL_S:
            return None
        ll = self._compile()
        ll.consume_tokens(token_ids)
        return None if ll.is_error() else ll

    def _compile(self) -> LLMatcher:
        return LLMatcher(self._tokenizer.ll, self._text, limits=parser_limits(), log_level=0)


class Matcher:
    """Follows one choice. Never raises for what a grammar or a token brings about: `failure` says it."""

    __slots__ = ("_grammar", "_patience_s", "_renewed_at", "_token_ids", "failure", "ll", "mask_bits", "vocab_size")

    def __init__(self, grammar: CompiledGrammar, ll: LLMatcher, tokenizer: GrammarTokenizer) -> None:
        self._grammar = grammar
        self._patience_s = PATIENCE_S
        self._token_ids: list[int] = []
        self._renewed_at = -_RENEWAL_TOKENS
        self.ll = ll
        self.vocab_size = tokenizer.vocab_size
        """Of the model's logits."""
        self.mask_bits = tokenizer.ll.vocab_size
        """Tokens in a mask, at least vocab_size."""
        self.failure: str | None = None
        """Why the choice cannot go on."""

    def take(self, token: int) -> Verdict | None:
        """Move over a committed token: "stop" if nothing can follow it, "error" (see `failure`) if the matcher cannot."""
        self._token_ids.append(token)
        start = time.thread_time()
        try:
            self.ll.consume_token(token)
        except Exception as error:  # noqa: BLE001 - the library's faults are this choice's alone
            self.fail(type(error).__name__)
        self.charge(time.thread_time() - start)
        return self.verdict()

    def verdict(self) -> Verdict | None:
        """Whether the choice ends here, and how. May replace `ll`, whose mask must then be filled again."""
        if self.failure is None and self.ll.is_error() and not self._renew():
            self.fail(describe(self.ll.get_error()))
        if self.failure is not None:
            return "error"
        return "stop" if self.ll.is_stopped() else None

    def _renew(self) -> bool:
        """Whether the lexer was full, and the choice can go on with another one."""
        if _WORN not in self.ll.get_error() or len(self._token_ids) - self._renewed_at < _RENEWAL_TOKENS:
            return False
        start = time.thread_time()
        renewed = self._grammar.renewed(self._token_ids)
        self.charge(time.thread_time() - start)
        if renewed is None or self.failure is not None:
            return False
        self.ll = renewed
        self._renewed_at = len(self._token_ids)
        return True

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
