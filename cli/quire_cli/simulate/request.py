"""A request of a simulated load: when it comes, how long it is, what its prompt shares with others. Holds values only.

A prompt is a chain of segments; each names a stream of tokens and says up to which position of the prompt it reaches:

    ("g3", 1000), ("s17", 4200)     a system prompt of 1,000 tokens that group 3 shares, then 3,200 tokens of session 17

Two requests share what their chains begin with in common; a session's later turn has the earlier turn's prompt and answer as its
beginning, because both are read from the session's stream.
"""

import msgspec

Segment = tuple[str, int]
"""(name of the stream, position in the prompt at which it ends)."""


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One of them."""

    number: int
    """Counts from 0 in the order of arrival."""
    at_s: float
    """Arrival, seconds since the load's beginning."""
    prompt: int
    """Tokens."""
    output: int
    """Tokens that it brings; at least 1."""
    chain: tuple[Segment, ...]
    """Ends at `prompt`."""
    priority: int = 0
    """Lower first, where the scheduling policy looks at it."""
    tenant: str = ""
