"""Choose the endpoint for a request: a pure function of the request, a snapshot of the candidates and a random source.

    drop    not ready | draining | tried before | ejected (while others are in) | silent (while others speak) | warming up, with its
            share of the load (while others can begin) | over the bounded-load guard
    score   cost in milliseconds = uncached tokens to prefill + work already promised + decode load + wait for free blocks
    pick    least cost, but the longest prefix is left only for a clear gain; of those within a hair of each other the one with the
            longer prefix, then the one given less work lately, then any

Knowledge of caches is a ladder, and the level used is part of the answer:

    precise      the candidates' KV events (and what was sent in the last seconds, its event still to come)
    approximate  what this router sent before
    hash         nobody is known to hold it: rendezvous hashing of the prompt's beginning, so that several routers agree
    least_load   a prompt that cannot be read, or shorter than a block: load alone

This is the policy "kv_aware"; `policies` has the others, which share the snapshot, the drops and the form of the answer.
This module knows nothing of sockets, clocks, configuration files or how the snapshot came about.
"""

import functools
import random
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import msgspec

from quire_contract.router_config import Role

Knowledge = Literal["precise", "approximate", "none"]
Level = Literal["precise", "approximate", "hash", "least_load", "none", "round_robin", "session"]
"""What a choice was made by; the last two only by a policy of that name."""

DEFAULT_MS_PER_TOKEN = 0.1
"""Prefill cost of one token, in ms, until it is learnt (10,000 tokens a second: between a CPU and a large GPU)."""
PROMISED_WEIGHT = 0.5
"""A token that waits before ours costs half of an uncached token of ours: both delay this request, but the uncached one is also work that
did not have to be done. So a burst with one prefix stays together until the queue is twice what the prefix would cost elsewhere."""
DECODE_MS_PER_REQUEST = 2.0
"""What one more running or waiting request at an endpoint adds to the latency felt by ours, in ms."""
BLOCK_WAIT_MS = 500.0
"""An endpoint whose free blocks cannot hold the prompt must first finish or preempt another request: about half a second, and as much again
in proportion to what is missing."""
OVER_SHARE = "over its share of the load"
GUARD_FACTOR = 1.25
GUARD_SLACK = 8
"""Bounded load: no endpoint gets a request while it has more than max(1.25 x mean, mean + 8) of them. The slack keeps the guard out of
the way when there are few: three against one is no hot spot."""
LEAVE_MS = 20.0
LEAVE_SHARE = 0.1
"""An endpoint without the longest prefix must be cheaper by 20 ms and by 10 %: computing a prefix a second time also takes cache
from others, and the conversation's next turns pay again."""
ADAPTER_LOAD_MS = 300.0
"""A request for an adapter that the endpoint has not loaded waits while its weights are read: some hundred MB, once."""
ADAPTER_SWAP_MS = 1500.0
"""The same where every place is taken: another adapter must go first, so requests for that one wait as well."""
TIE_MS = 1.0
TIE_SHARE = 0.01
"""Costs within 1 ms + 1 % of the best are equal: the estimates are no better than that."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of one endpoint that serves the model, for this request, at this moment."""

    endpoint_id: str
    ready: bool = True
    draining: bool = False
    silent: bool = False
    """It sent reports before and has stopped, though its port answers: perhaps its engine hangs."""
    knowledge: Knowledge = "none"
    """Where `matched_tokens` comes from."""
    matched_tokens: int = 0
    """Leading prompt tokens it is believed to hold."""
    load: int = 0
    """Requests running or waiting there, ours that it has not reported yet included."""
    promised_tokens: int = 0
    """Uncached prompt tokens it still has to prefill for others, ours that it has not reported yet included."""
    ms_per_token: float = DEFAULT_MS_PER_TOKEN
    free_tokens: int | None = None
    """Tokens that fit its free blocks. None: not known."""
    recent_ms: float = 0.0
    """Work this router gave it lately, decaying. Only breaks ties, so that cold prompts spread."""
    ejected: bool = False
    """It failed too often lately: avoided while another is there."""
    role: Role = "both"
    """What it does of a request: one that only prefills answers none."""
    adapter_ms: float = 0.0
    """Wait until it has the request's adapter: 0 where that is loaded, or none is asked for."""
    last_turn: int = 0
    """Number of this router's latest choice that fell on it; 0: none did."""
    warmth: float = 1.0
    """The share of a usual endpoint's load that it may have; below 1 for one that has just become ready."""
    is_busy: bool = False
    """A further request would wait there before it runs."""


class RouteRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What choosing needs of a request."""

    model: str
    num_tokens: int | None = None
    """Length of the prompt, exact or estimated. None: it could not be read."""
    affinity_key: int | None = None
    """Hash of the prompt's beginning. None: no such."""
    excluded: frozenset[str] = frozenset()
    """Endpoints already tried for this request."""
    generates: bool = True
    """Whether the answer is generated: then an endpoint that only prefills cannot give it."""
    session_key: int | None = None
    """Hash of what names the client's session. None: nothing does."""


class Score(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The cost of one candidate in ms, and what it is made of. Dropped ones have no cost, but a reason."""

    endpoint_id: str
    matched_tokens: int
    load: int
    prefill_ms: float
    promised_ms: float
    decode_ms: float
    blocks_ms: float
    cost_ms: float
    dropped: str | None = None
    adapter_ms: float = 0.0


class Choice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The endpoint (None: there is none) and why."""

    endpoint_id: str | None
    level: Level
    matched_tokens: int
    num_tokens: int | None
    reason: str
    """For a person, in words."""
    explain: Callable[[], tuple[Score, ...]]
    """Gives `scores`: few choices are ever explained."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """Every candidate, in the snapshot's order."""
        return self.explain()


def choose(request: RouteRequest, snapshot: Sequence[Candidate], rng: random.Random) -> Choice:
    """Pick an endpoint for the request. Pure but for `rng`, which breaks ties."""
    dropped = drop_all(request, snapshot)
    left = [c for c in snapshot if c.endpoint_id not in dropped] if dropped else list(snapshot)
    if not left:
        return no_choice(request, snapshot, dropped)
    level = ladder_level(request, left)
    if level == "hash":
        assert request.affinity_key is not None
        key = request.affinity_key
        best = max(left, key=lambda c: rendezvous(key, c.endpoint_id))
    else:
        best = _cheapest(left, {c.endpoint_id: cost_ms(request, c) for c in left}, rng)
    longest = max(c.matched_tokens for c in left)
    return Choice(
        endpoint_id=best.endpoint_id,
        level=level,
        matched_tokens=best.matched_tokens,
        num_tokens=request.num_tokens,
        reason=in_words(best.matched_tokens, longest, len(left), level, request.num_tokens),
        explain=explanation(request, snapshot, dropped),
    )


def explanation(
    request: RouteRequest, snapshot: Sequence[Candidate], dropped: Mapping[str, str]
) -> Callable[[], tuple[Score, ...]]:
    """What gives the scores of a choice."""
    return functools.partial(_scores, request, snapshot, dropped)


def _scores(request: RouteRequest, snapshot: Sequence[Candidate], dropped: Mapping[str, str]) -> tuple[Score, ...]:
    return tuple(score(request, c, dropped.get(c.endpoint_id)) for c in snapshot)


def ladder_level(request: RouteRequest, left: Collection[Candidate]) -> Level:
    """The best level whose knowledge is there: precise only if it holds for every candidate, or a stale one would never be chosen."""
    if request.num_tokens is not None:
        if all(c.knowledge == "precise" for c in left):
            return "precise"
        if any(c.matched_tokens for c in left):
            return "approximate"
    return "least_load" if request.affinity_key is None else "hash"


def drop_all(request: RouteRequest, snapshot: Sequence[Candidate]) -> dict[str, str]:
    """Id of each candidate that is out -> why. Preferences (ejection, silence, load) drop a candidate only while another is left."""
    dropped = drop_unfit(request, snapshot)
    if len(snapshot) - len(dropped) < 2:
        return dropped
    left = [c for c in snapshot if c.endpoint_id not in dropped] if dropped else snapshot
    loads = [c.load for c in left]
    mean = (sum(loads) + 1) / len(loads)
    most = max(GUARD_FACTOR * mean, mean + GUARD_SLACK)
    if max(loads) + 1 > most:
        dropped.update({c.endpoint_id: OVER_SHARE for c in left if c.load + 1 > most})
    return dropped


def drop_unfit(request: RouteRequest, snapshot: Sequence[Candidate]) -> dict[str, str]:
    """As `drop_all`, whatever the load."""
    dropped = {c.endpoint_id: word for c in snapshot if (word := _unfit(request, c))}
    if any(c.ejected or c.silent for c in snapshot):
        for avoided, word in ((_is_ejected, "ejected"), (_is_silent, "silent")):
            found = [c.endpoint_id for c in snapshot if avoided(c) and c.endpoint_id not in dropped]
            if found and len(found) + len(dropped) < len(snapshot):
                dropped.update(dict.fromkeys(found, word))
    if any(c.warmth < 1 for c in snapshot):
        dropped |= warming(request, [c for c in snapshot if c.endpoint_id not in dropped])
    return dropped


def warming(request: RouteRequest, left: Sequence[Candidate]) -> dict[str, str]:
    """Of those left, the ones that warm up and have their share of the load already, and why each is out.

    The share is of the warm ones' mean load. One request at a time they always get, so nothing waits while one of them is idle; and all
    that comes as soon as no warm one could begin with it, or where all are new."""
    warm = [c for c in left if c.warmth >= 1]
    if not any(_can_begin(request, c) for c in warm):
        return {}
    mean = sum(c.load for c in warm) / len(warm)
    return {
        c.endpoint_id: f"warming up: has its {c.warmth:.0%} of the others' load"
        for c in left
        if c.warmth < 1 and c.load + 1 > max(1.0, c.warmth * mean)
    }


def _can_begin(request: RouteRequest, candidate: Candidate) -> bool:
    uncached = max(0, (request.num_tokens or 0) - candidate.matched_tokens)
    return not candidate.is_busy and (candidate.free_tokens is None or candidate.free_tokens >= uncached)


def _is_ejected(candidate: Candidate) -> bool:
    return candidate.ejected


def _is_silent(candidate: Candidate) -> bool:
    return candidate.silent


def _unfit(request: RouteRequest, candidate: Candidate) -> str | None:
    if candidate.endpoint_id in request.excluded:
        return "tried before"
    if candidate.draining:
        return "draining"
    if request.generates and candidate.role == "prefill":
        return "only prefills"
    return None if candidate.ready else "not ready"


def cost_ms(request: RouteRequest, candidate: Candidate) -> float:
    """What the request would cost there, in ms."""
    prefill_ms, promised_ms, decode_ms, blocks_ms = parts_ms(
        max(0, (request.num_tokens or 0) - candidate.matched_tokens),
        candidate.promised_tokens,
        candidate.load,
        candidate.ms_per_token,
        candidate.free_tokens,
    )
    return prefill_ms + promised_ms + decode_ms + blocks_ms + candidate.adapter_ms


def parts_ms(
    uncached: int, promised: int, load: int, ms_per_token: float, free_tokens: int | None
) -> tuple[float, float, float, float]:
    """What a request with `uncached` tokens to compute costs at an endpoint, in ms: prefill, promised, decode, blocks."""
    blocks_ms = 0.0
    if free_tokens is not None and free_tokens < uncached:
        blocks_ms = BLOCK_WAIT_MS * (1 + (uncached - free_tokens) / uncached)
    return uncached * ms_per_token, promised * ms_per_token * PROMISED_WEIGHT, load * DECODE_MS_PER_REQUEST, blocks_ms


def score(request: RouteRequest, candidate: Candidate, dropped: str | None) -> Score:
    """What the request would cost there, and why. `dropped`: why the candidate is out."""
    prefill_ms, promised_ms, decode_ms, blocks_ms = parts_ms(
        max(0, (request.num_tokens or 0) - candidate.matched_tokens),
        candidate.promised_tokens,
        candidate.load,
        candidate.ms_per_token,
        candidate.free_tokens,
    )
    return Score(
        endpoint_id=candidate.endpoint_id,
        matched_tokens=candidate.matched_tokens,
        load=candidate.load,
        prefill_ms=prefill_ms,
        promised_ms=promised_ms,
        decode_ms=decode_ms,
        blocks_ms=blocks_ms,
        cost_ms=prefill_ms + promised_ms + decode_ms + blocks_ms + candidate.adapter_ms,
        dropped=dropped,
        adapter_ms=candidate.adapter_ms,
    )


def _cheapest(left: Sequence[Candidate], costs: dict[str, float], rng: random.Random) -> Candidate:
    if len(left) == 1:
        return left[0]
    best = least(left, costs, rng)
    longest = max(c.matched_tokens for c in left)
    if best.matched_tokens == longest:
        return best
    holder = least([c for c in left if c.matched_tokens == longest], costs, rng)
    stay_ms, leave_ms = costs[holder.endpoint_id], costs[best.endpoint_id]
    return best if stay_ms - leave_ms > max(LEAVE_MS, LEAVE_SHARE * stay_ms) else holder


def least(left: Sequence[Candidate], costs: Mapping[str, float], rng: random.Random) -> Candidate:
    """The candidate with the least cost; of equals the one with the longer prefix, then the one given less work lately, then any."""
    least = min(costs[c.endpoint_id] for c in left)
    limit = least + TIE_MS + TIE_SHARE * least
    tied = [c for c in left if costs[c.endpoint_id] <= limit]
    return tied[0] if len(tied) == 1 else min(tied, key=lambda c: (-c.matched_tokens, c.recent_ms, rng.random()))


def rendezvous(key: int, endpoint_id: str) -> int:
    """A 64-bit mix of key and endpoint, equal in every process: the highest wins, and an endpoint that leaves moves only its own keys."""
    mixed = (key ^ (zlib.crc32(endpoint_id.encode()) * 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return mixed ^ (mixed >> 31)


def no_choice(request: RouteRequest, snapshot: Sequence[Candidate], dropped: Mapping[str, str]) -> Choice:
    """The answer where nobody is left."""
    return Choice(
        endpoint_id=None,
        level="none",
        matched_tokens=0,
        num_tokens=request.num_tokens,
        reason=_why_none(dropped),
        explain=explanation(request, snapshot, dropped),
    )


def _why_none(dropped: Mapping[str, str]) -> str:
    if not dropped:
        return "no endpoint serves the model"
    return "no endpoint left: " + ", ".join(f"{endpoint_id} {word}" for endpoint_id, word in dropped.items())


def in_words(matched: int, longest: int, num_left: int, level: Level, num_tokens: int | None) -> str:
    """Why it was chosen who is believed to hold `matched` tokens, where the best of `num_left` holds `longest`."""
    if num_left == 1:
        return f"the only endpoint left, holds {matched} of {num_tokens or 'unknown'} tokens"
    if level == "hash":
        return "nobody is known to hold the prefix: by hash of the prompt's beginning"
    if level == "least_load":
        return "too little of the prompt is known to look for it: least work"
    if longest == 0:
        return "nobody holds the prefix: least work"
    if matched == longest:
        return f"holds the longest prefix, {longest} of {num_tokens} tokens"
    return f"holds {matched} of {num_tokens} tokens; the endpoint with {longest} costs more to wait for"
