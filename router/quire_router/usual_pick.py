"""The usual case of a choice from gathering to deciding: in Python, or in C++ where that is there. Both decide the same
(tests/router/test_usual_pick.py)."""

import functools
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry
from quire_contract.telemetry import log_event
from quire_router import scoring
from quire_router.counting import reservation_class
from quire_router.ejection import Health
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import RECENT_LIFE_S, SPEED_SAME, Endpoint, Reservation
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.metrics import ModelMetrics
from quire_router.native.library import native
from quire_router.prompts import PromptBlocks
from quire_router.scoring import Choice, Score, in_words
from quire_router.snapshots import SILENT_AFTER_S, SPECULATIVE_LIFE_S, ReadablePrompt, Snapshots
from quire_router.tallies import Bars, Tally
from quire_router.usual_choice import Columns, choose_usual, scores_on
from quire_router.warmup import Warmup

log = logging.getLogger("quire_router.usual_pick")


class UsualPick(Protocol):
    """The usual case of choosing."""

    def pick(
        self, model: str, endpoints: tuple[Endpoint, ...], prompt: ReadablePrompt, now_s: float
    ) -> tuple[Endpoint, Choice] | None:
        """The endpoint for a prompt, and the choice; the same that `scoring.choose` makes. None: something is out of the ordinary."""

    def digest(self, endpoints: tuple[Endpoint, ...]) -> str | None:
        """Of their prompt bundle, if all of them have told one and the same. None: they have not."""

    def placing(
        self,
        choice_s: Bars,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        turns: Iterator[int],
        note: Callable[[Any], object],
    ) -> "Place | None":
        """All of `Picker.pick` in one call, for the usual case. None: there is no such."""


Place = Callable[
    [str, str, tuple[Endpoint, ...], float, ReadablePrompt, ModelMetrics], tuple[Reservation, Choice] | None
]
"""Takes a request's id, its model, that one's endpoints and slow_start_s, the prompt, and where the model's requests are counted. Gives
what `Picker.pick` does, and notes what that notes. None: something is out of the ordinary, and nothing was noted."""
CLASSES = (Endpoint, LoadReport, Health, Warmup, EndpointEntry)
"""Whose fields the C++ reads."""
PLACING_CLASSES = (ReadablePrompt, PromptBlocks, ModelMetrics, Tally, Bars)
"""Whose fields it reads or writes as well, with those of endpoints and reservations."""
RULES = {
    "guard_factor": scoring.GUARD_FACTOR,
    "guard_slack": scoring.GUARD_SLACK,
    "leave_ms": scoring.LEAVE_MS,
    "leave_share": scoring.LEAVE_SHARE,
    "tie_ms": scoring.TIE_MS,
    "tie_share": scoring.TIE_SHARE,
    "promised_weight": scoring.PROMISED_WEIGHT,
    "decode_ms": scoring.DECODE_MS_PER_REQUEST,
    "block_wait_ms": scoring.BLOCK_WAIT_MS,
    "speculative_life_s": SPECULATIVE_LIFE_S,
    "silent_after_s": SILENT_AFTER_S,
    "recent_life_s": RECENT_LIFE_S,
    "default_ms_per_token": scoring.DEFAULT_MS_PER_TOKEN,
    "speed_same": SPEED_SAME,
}
"""What both go by."""


def usual_pick(
    pool: EndpointPool, index: KvIndex, sent: SentIndex, snapshots: Snapshots, rng: random.Random
) -> UsualPick:
    """In C++ if the indexes are."""
    if type(index) is not KvIndex and type(sent) is not SentIndex:
        try:
            return _InCpp(pool, index, sent, rng)
        except (TypeError, AttributeError) as error:  # another Python, or msgspec, than is known: fields lie elsewhere
            log_event(log, logging.WARNING, "native_choice", used=False, why=str(error))
    return _InPython(snapshots, rng)


class _InPython:
    def __init__(self, snapshots: Snapshots, rng: random.Random) -> None:
        self._snapshots = snapshots
        self._rng = rng

    def pick(
        self, model: str, endpoints: tuple[Endpoint, ...], prompt: ReadablePrompt, now_s: float
    ) -> tuple[Endpoint, Choice] | None:
        columns = self._snapshots.columns(endpoints, prompt, now_s)
        if columns is None:
            return None
        (blocks,) = prompt.by_digest.values()
        picked = choose_usual(
            model, blocks.num_tokens, columns, lambda place: endpoints[place].recent_ms(now_s), self._rng
        )
        return None if picked is None else (endpoints[picked[0]], picked[1])

    def digest(self, endpoints: tuple[Endpoint, ...]) -> str | None:
        digests = {endpoint.digest for endpoint in endpoints}
        return digests.pop() if len(digests) == 1 else None

    def placing(self, *_: object) -> Place | None:
        return None


class _InCpp:
    def __init__(self, pool: EndpointPool, index: KvIndex, sent: SentIndex, rng: random.Random) -> None:
        self._chooser = chooser = native().UsualChoice(index, sent, rng.random, CLASSES, RULES)
        self._pick = chooser.pick
        self.digest: Callable[[tuple[Endpoint, ...]], str | None] = chooser.digest
        self._pool = pool

    def pick(
        self, model: str, endpoints: tuple[Endpoint, ...], prompt: ReadablePrompt, now_s: float
    ) -> tuple[Endpoint, Choice] | None:
        by_digest = prompt.by_digest
        if len(by_digest) != 1:
            return None
        ((digest, blocks),) = by_digest.items()
        num_tokens = blocks.num_tokens
        slow_start_s = self._pool.settings.choice.slow_start_s
        found = self._pick(endpoints, digest, blocks.hashes, num_tokens, blocks.block_tokens, now_s, slow_start_s)
        if found is None:
            return None
        place, matched, longest, seen = found
        endpoint = endpoints[place]
        return endpoint, Choice(
            endpoint_id=endpoint.id,
            level="precise",
            matched_tokens=matched,
            num_tokens=num_tokens,
            reason=in_words(matched, longest, len(endpoints), "precise", num_tokens),
            explain=functools.partial(_scores, model, num_tokens, seen),
        )

    def placing(
        self,
        choice_s: Bars,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        turns: Iterator[int],
        note: Callable[[Any], object],
    ) -> Place | None:
        called = (Choice, clock, wall_clock, turns, note, _scores)
        try:
            classes = (Endpoint, reservation_class(), *PLACING_CLASSES)
            placing = native().Placing(self._chooser, classes, choice_s, choice_s.bounds, called)
        except (TypeError, AttributeError) as error:
            log_event(log, logging.WARNING, "native_placing", used=False, why=str(error))
            return None
        return placing.place  # type: ignore[no-any-return]  # of the extension


def _scores(model: str, num_tokens: int, seen: Any) -> tuple[Score, ...]:
    return scores_on(model, num_tokens, Columns(*seen.columns()))
