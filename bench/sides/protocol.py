"""What bench/engine.py and the process of each side say to each other: one JSON object a line.

driver -> side   {"prompts": [[token id, ...], ...], "max_tokens": n}
side -> driver   {"ready": true}  once, then for each request {"seconds": s, "tokens": [generated per prompt, ...]}

A side generates exactly max_tokens for every prompt, greedily, ignoring end-of-sequence tokens.
"""

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[list[int]], int], list[int]]


def serve(generate: Generate) -> None:
    """Answer requests on stdin until it closes. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    generate([[1, 2, 3]], 1)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        tokens = generate(request["prompts"], request["max_tokens"])
        print(json.dumps({"seconds": time.perf_counter() - started, "tokens": tokens}), file=answers)
