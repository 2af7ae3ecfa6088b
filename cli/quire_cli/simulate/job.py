"""A request at a simulated worker, and what the world is told of it. Holds values only."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from quire_cli.simulate.request import Request
from quire_cli.simulate.samples import Histogram


class Listener(Protocol):
    """Hears of answers, beside the simulation: a router that counts them."""

    def first_token(self, request: Request, now_s: float) -> None: ...

    def done(self, request: Request) -> None: ...


@dataclass(kw_only=True)
class Told:
    """Who hears what a worker does; one for all workers."""

    first: Callable[[Request, float], None]
    """A request's first token came at a time."""
    done: Callable[[Request, float], None]
    """Its last one did."""
    gaps: Histogram = field(default_factory=Histogram)
    """Times between two tokens of one request."""
    recent_gaps: Histogram = field(default_factory=Histogram)
    """The same since whoever reads it replaced it."""
    num_preemptions: int = 0
    num_prompt: int = 0
    """Prompt tokens of requests that were admitted."""
    num_cached: int = 0
    """Of those, tokens found in the cache."""
    listener: Listener | None = None

    def gap(self, gap_s: float, count: int) -> None:
        """So many tokens came, each so long after the one before."""
        bucket = self.gaps.add(gap_s, count)
        self.recent_gaps.add_to(bucket, gap_s, count)


class Job:
    """One request in a worker."""

    __slots__ = ("computed", "finish_step", "generated", "held", "known", "own", "request", "seq", "start_step")

    def __init__(self, request: Request, seq: int) -> None:
        self.request = request
        self.seq = seq
        """Order of arrival at the worker."""
        self.known = request.prompt
        """Tokens to compute before the next one can be sampled."""
        self.computed = 0
        self.generated = 0
        """Tokens that came, when it was last counted."""
        self.start_step = 0
        """Decode steps of the worker when its first token, or the first after preemption, came."""
        self.finish_step = -1
        """The same for its last token; -1: it does not decode."""
        self.own = 0
        """Tokens of KV that nobody shares, without those of decode steps since start_step."""
        self.held: list[str] = []
        """Streams of the cache that it uses."""
