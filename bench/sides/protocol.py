"""What bench/engine.py and the process of each side say to each other: one JSON object a line.

driver -> side   {"prompts": [[token id, ...], ...], "max_tokens": n}
side -> driver   {"ready": true}  once, then for each request {"seconds": s, "tokens": [generated per prompt, ...],
                 "decode_seconds": s, "decode_tokens": n}

A side generates exactly max_tokens for every prompt, greedily, ignoring end-of-sequence tokens. `seconds` runs from the request to
its last token. The decode part (see DecodeClock) is timed only where a side was asked for it: {"decode_only": true}.
"""

import json
import os
import sys
import time
from collections.abc import Callable

from decode_clock import DecodeClock

Generate = Callable[[list[list[int]], int], list[int]]
"""(prompts, max_tokens) -> tokens generated for each prompt."""

# Whatever libraries print goes to stderr, what they print while they are imported too.
_ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


DecodeOnly = Callable[[list[list[int]], int, DecodeClock], list[int]]
"""(prompts, max_tokens, clock) -> tokens generated for each prompt; tells the clock of every step."""


def serve(generate: Generate, decode_only: DecodeOnly) -> None:
    """Answer requests on stdin until it closes."""
    generate([[1, 2, 3]], 1)
    _answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        prompts, max_tokens = request["prompts"], request["max_tokens"]
        clock = DecodeClock(len(prompts), max_tokens)
        started = time.perf_counter()
        is_clocked = request.get("decode_only", False)
        tokens = decode_only(prompts, max_tokens, clock) if is_clocked else generate(prompts, max_tokens)
        seconds = time.perf_counter() - started
        _answer({"seconds": seconds, "tokens": tokens, "decode_seconds": clock.seconds, "decode_tokens": clock.tokens})


def _answer(what: dict[str, object]) -> None:
    print(json.dumps(what), file=_ANSWERS)
