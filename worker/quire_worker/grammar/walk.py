"""Trying a grammar: compile it, then walk through it at random, so that what would fail or dawdle while serving does so here."""

import random
import time

import numpy as np
from llguidance import LLMatcher

from quire_worker.grammar.limits import parser_limits
from quire_worker.grammar.matcher import describe
from quire_worker.grammar.tokenizer import GrammarTokenizer

_STEPS = 192
_WALK_S = 1.0
"""Processor time of the whole walk. A grammar that takes longer would hold up everybody's steps."""
_TOO_SLOW = "takes too long for each token; make it less ambiguous"


def refusal_of(text: str, tokenizer: GrammarTokenizer) -> str:
    """What is wrong with a grammar; "" if nothing is."""
    matcher = LLMatcher(tokenizer.ll, text, limits=parser_limits(), log_level=0)
    if matcher.is_error():
        return describe(matcher.get_error())
    return _walk(matcher.deep_copy(), tokenizer)


def _walk(matcher: LLMatcher, tokenizer: GrammarTokenizer) -> str:
    rng = random.Random(0)  # noqa: S311 - the same walk every time
    start = time.thread_time()
    for step in range(_STEPS):
        allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        if matcher.is_error():
            return _failure(matcher, is_first=step == 0)
        if matcher.is_stopped():
            return ""
        ways = np.setdiff1d(np.flatnonzero(allowed), tokenizer.ll.eos_tokens)
        if not len(ways):
            return ""
        matcher.consume_token(int(rng.choice(ways)))
        if time.thread_time() - start > _WALK_S:
            return _TOO_SLOW
    return ""


def _failure(matcher: LLMatcher, *, is_first: bool) -> str:
    message = matcher.get_error()
    if is_first and "NoExtension" in message:
        return "no text matches it"
    return describe(message)
