"""Choosing an endpoint by the policy that a service's configuration names. Pure functions, on the same snapshot as `scoring`.

    kv_aware          least cost in milliseconds: see `scoring`
    round_robin       whoever was chosen longest ago
    least_load        fewest requests running or waiting, then least work promised
    consistent_hash   by hash of the prompt's beginning, with bounded load: in the order of rendezvous hashing the first endpoint that
                      would not hold more than ceil(1.25 x the mean) (Mirrokni, Thorup, Zadimoghaddam 2016); without one: least_load
    session_affinity  by hash of the session, in the same order, past endpoints that kv_aware's guard would drop too; a request that
                      names no session: kv_aware

Routers that see the same endpoints agree on both hashes, and an endpoint that leaves moves only what was its own. Every policy drops who
is not ready, draining, tried before, only prefills, or is silent while others speak.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence

from quire_contract.router_config import RoutingPolicy
from quire_router.scoring import (
    GUARD_FACTOR,
    OVER_SHARE,
    Candidate,
    Choice,
    Level,
    RouteRequest,
    choose,
    drop_all,
    drop_unfit,
    explanation,
    least,
    no_choice,
    rendezvous,
)

POLICIES_BY_CONTENT: frozenset[RoutingPolicy] = frozenset({"kv_aware", "consistent_hash", "session_affinity"})
"""Those that look at a prompt's blocks; for the others it need not be tokenised."""
Policy = Callable[[RouteRequest, Sequence[Candidate], random.Random], Choice]


def choose_by(
    policy: RoutingPolicy, request: RouteRequest, snapshot: Sequence[Candidate], rng: random.Random
) -> Choice:
    """Pick an endpoint for the request. Pure but for `rng`, which breaks ties."""
    return _POLICIES[policy](request, snapshot, rng)


def _round_robin(request: RouteRequest, snapshot: Sequence[Candidate], rng: random.Random) -> Choice:
    dropped = drop_unfit(request, snapshot)
    left = _left(snapshot, dropped)
    best = min(left, key=lambda c: c.last_turn, default=None)
    return _answer(best, "round_robin", "was chosen longest ago", request, snapshot, dropped)


def _least_load(request: RouteRequest, snapshot: Sequence[Candidate], rng: random.Random) -> Choice:
    dropped = drop_unfit(request, snapshot)
    left = _left(snapshot, dropped)
    best = _idlest(left, rng) if left else None
    return _answer(best, "least_load", "has the fewest requests", request, snapshot, dropped)


def _consistent_hash(request: RouteRequest, snapshot: Sequence[Candidate], rng: random.Random) -> Choice:
    if request.affinity_key is None:
        return _least_load(request, snapshot, rng)
    dropped = drop_unfit(request, snapshot)
    left = _left(snapshot, dropped)
    if left:
        most = bounded_load(left)
        dropped |= {c.endpoint_id: OVER_SHARE for c in left if c.load + 1 > most}
        left = _left(left, dropped)
    return _answer(
        _by_hash(request.affinity_key, left),
        "hash",
        "by hash of the prompt's beginning",
        request,
        snapshot,
        dropped,
    )


def _session_affinity(request: RouteRequest, snapshot: Sequence[Candidate], rng: random.Random) -> Choice:
    if request.session_key is None:
        return choose(request, snapshot, rng)
    dropped = drop_all(request, snapshot)
    best = _by_hash(request.session_key, _left(snapshot, dropped))
    return _answer(best, "session", "by hash of the session", request, snapshot, dropped)


_POLICIES: Mapping[RoutingPolicy, Policy] = {
    "kv_aware": choose,
    "round_robin": _round_robin,
    "least_load": _least_load,
    "consistent_hash": _consistent_hash,
    "session_affinity": _session_affinity,
}


def bounded_load(left: Sequence[Candidate]) -> int:
    """Requests that one of `left` may hold at most, the one to be placed included: at least one of them holds fewer."""
    return math.ceil(GUARD_FACTOR * (sum(c.load for c in left) + 1) / len(left))


def _idlest(left: Sequence[Candidate], rng: random.Random) -> Candidate:
    fewest = min(c.load for c in left)
    tied = [c for c in left if c.load == fewest]
    return least(tied, {c.endpoint_id: c.promised_tokens * c.ms_per_token for c in tied}, rng)


def _by_hash(key: int, left: Sequence[Candidate]) -> Candidate | None:
    return max(left, key=lambda c: rendezvous(key, c.endpoint_id), default=None)


def _left(snapshot: Sequence[Candidate], dropped: Mapping[str, str]) -> list[Candidate]:
    return [c for c in snapshot if c.endpoint_id not in dropped]


def _answer(
    best: Candidate | None,
    level: Level,
    reason: str,
    request: RouteRequest,
    snapshot: Sequence[Candidate],
    dropped: Mapping[str, str],
) -> Choice:
    if best is None:
        return no_choice(request, snapshot, dropped)
    return Choice(
        endpoint_id=best.endpoint_id,
        level=level,
        matched_tokens=best.matched_tokens,
        num_tokens=request.num_tokens,
        reason=reason,
        explain=explanation(request, snapshot, dropped),
    )
