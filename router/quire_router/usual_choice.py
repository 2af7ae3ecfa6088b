"""The usual case of `scoring.choose`, on columns instead of candidates: every endpoint is ready, warm, heard of and in step, nobody was
tried before, no load is out of bounds. Most requests are chosen so, at a third of the cost.

It decides exactly as `scoring.choose` does on the same snapshot (tests/router/test_usual_choice.py), and knows no more than that.
"""

import functools
import random
from collections.abc import Callable, Sequence

import msgspec

from quire_router.scoring import (
    BLOCK_WAIT_MS,
    DECODE_MS_PER_REQUEST,
    GUARD_FACTOR,
    GUARD_SLACK,
    LEAVE_MS,
    LEAVE_SHARE,
    PROMISED_WEIGHT,
    TIE_MS,
    TIE_SHARE,
    Candidate,
    Choice,
    RouteRequest,
    Score,
    in_words,
    score,
)


class Columns(msgspec.Struct, frozen=True, gc=False):
    """A snapshot: the i-th of each column is of the i-th endpoint, and means what the field of `scoring.Candidate` does."""

    endpoint_ids: Sequence[str]
    matched_tokens: list[int]
    loads: list[int]
    promised_tokens: list[int]
    free_tokens: list[int | None]
    ms_per_token: Sequence[float]

    def candidates(self) -> list[Candidate]:
        """The same as `scoring` knows it."""
        columns = (self.matched_tokens, self.loads, self.promised_tokens, self.free_tokens, self.ms_per_token)
        return [
            Candidate(
                endpoint_id=endpoint_id,
                knowledge="precise",
                matched_tokens=matched,
                load=load,
                promised_tokens=promised,
                ms_per_token=speed,
                free_tokens=free,
            )
            for endpoint_id, matched, load, promised, free, speed in zip(self.endpoint_ids, *columns, strict=True)
        ]


def choose_usual(
    model: str, num_tokens: int, columns: Columns, recent_ms: Callable[[int], float], rng: random.Random
) -> tuple[int, Choice] | None:
    """The place of the endpoint for a prompt of so many tokens, and the choice. None: a load is out of bounds; `scoring` knows what to do.

    `recent_ms`: the work that was given lately to the endpoint at a place; asked of equals only. Pure but for `rng`, which breaks ties."""
    loads = columns.loads
    number = len(loads)
    matched = columns.matched_tokens
    if number == 1:
        best = 0
    else:
        mean = (sum(loads) + 1) / number
        if max(loads) + 1 > max(GUARD_FACTOR * mean, mean + GUARD_SLACK):
            return None
        best = _cheapest(matched, _costs(num_tokens, columns), recent_ms, rng)
    mine = matched[best]
    return best, Choice(
        endpoint_id=columns.endpoint_ids[best],
        level="precise",
        matched_tokens=mine,
        num_tokens=num_tokens,
        reason=in_words(mine, max(matched), number, "precise", num_tokens),
        explain=functools.partial(scores_on, model, num_tokens, columns),
    )


def scores_on(model: str, num_tokens: int, columns: Columns) -> tuple[Score, ...]:
    """Those of a choice that was made on them."""
    request = RouteRequest(model=model, num_tokens=num_tokens)
    return tuple(score(request, candidate, None) for candidate in columns.candidates())


def _costs(num_tokens: int, columns: Columns) -> list[float]:
    """As `scoring.cost_ms`."""
    costs = []
    for matched, load, promised, speed, free in zip(
        columns.matched_tokens, columns.loads, columns.promised_tokens, columns.ms_per_token, columns.free_tokens, strict=True
    ):  # fmt: skip
        uncached = num_tokens - matched if matched < num_tokens else 0
        cost = uncached * speed + promised * speed * PROMISED_WEIGHT + load * DECODE_MS_PER_REQUEST
        if free is not None and free < uncached:
            cost += BLOCK_WAIT_MS * (1 + (uncached - free) / uncached)
        costs.append(cost)
    return costs


def _cheapest(
    matched: Sequence[int], costs: Sequence[float], recent_ms: Callable[[int], float], rng: random.Random
) -> int:
    best = _least(range(len(costs)), matched, costs, recent_ms, rng)
    longest = max(matched)
    if matched[best] == longest:
        return best
    holders = [place for place, tokens in enumerate(matched) if tokens == longest]
    holder = _least(holders, matched, costs, recent_ms, rng)
    stay_ms, leave_ms = costs[holder], costs[best]
    return best if stay_ms - leave_ms > max(LEAVE_MS, LEAVE_SHARE * stay_ms) else holder


def _least(
    places: Sequence[int],
    matched: Sequence[int],
    costs: Sequence[float],
    recent_ms: Callable[[int], float],
    rng: random.Random,
) -> int:
    """As `scoring.least`."""
    if len(places) == 1:
        return places[0]
    least = min(costs) if len(places) == len(costs) else min([costs[place] for place in places])
    limit = least + TIE_MS + TIE_SHARE * least
    tied = [place for place in places if costs[place] <= limit]
    if len(tied) == 1:
        return tied[0]
    return min(tied, key=lambda place: (-matched[place], recent_ms(place), rng.random()))
