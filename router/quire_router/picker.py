"""Picks endpoints: gathers what is known into a snapshot, lets `scoring.choose` decide, remembers what was sent and why.

Decides on a snapshot and performs no request; the proxy acts on its answer.
"""

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from quire_contract.block_hash import ExtraKeys
from quire_contract.openai.requests import RoutingFields
from quire_contract.router_config import RoutingPolicy
from quire_router import ejection
from quire_router.counting import reservation_class
from quire_router.endpoint_pool import EndpointPool, Served
from quire_router.endpoints import Endpoint, Reservation
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.metrics import RouterMetrics
from quire_router.policies import POLICIES_BY_CONTENT, choose_by
from quire_router.prompts import PromptBlocks, PromptReader, read_text
from quire_router.retry_budget import MAX_RETRIES
from quire_router.route_plan import RoutePlanner, Sticky
from quire_router.scoring import Choice, RouteRequest
from quire_router.snapshots import ReadablePrompt, Snapshots
from quire_router.splitting import choose_by_hash, choose_by_weight
from quire_router.usual_pick import usual_pick

AFFINITY_TOKENS = 256
"""The hash level keys on this much of the prompt: enough to tell system prompts apart, little enough to keep a conversation together."""
MAX_DECISIONS = 512
LARGE_BYTES = 256 * 1024
"""To put the text of more than this together takes milliseconds, in which no stream would go on."""


class Split(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a request was given to one revision of a service before an endpoint was chosen there."""

    revision: str | None
    """None: no revision with a weight has an endpoint left."""
    weights: Mapping[str, int]
    is_sticky: bool = False
    """Chosen by whose request it is; otherwise drawn."""


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One choice that was made, for /debug/route. Never holds a prompt."""

    request_id: str
    model: str
    ts: float
    """Unix time in seconds."""
    attempt: int
    choice: Choice
    split: Split | None
    """None: the model's requests are not split."""
    policy: RoutingPolicy = "kv_aware"


_Decided = tuple[str, str, float, int, Choice, Split | None, RoutingPolicy]
"""A decision's fields: few are ever looked at."""


class Picker:
    """Chooses endpoints for requests. Times: seconds of `clock`, a monotonic clock; `wall_clock` only dates decisions."""

    def __init__(
        self,
        *,
        pool: EndpointPool,
        index: KvIndex,
        sent: SentIndex,
        reader: PromptReader,
        metrics: RouterMetrics,
        rng: random.Random,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._snapshots = Snapshots(pool, index, sent)
        self._usual = usual_pick(pool, index, sent, self._snapshots, rng)
        self._sent = sent
        self._reader = reader
        self._metrics = metrics
        self._rng = rng
        self._clock = clock
        self._wall_clock = wall_clock
        self._turns = itertools.count(1)
        self._large = asyncio.Semaphore(1)
        """The text of a large body is looked at in a thread, of one body at a time."""
        self._decisions: deque[_Decided] = deque(maxlen=MAX_DECISIONS)
        self._new_reservation = reservation_class()
        self._place = self._usual.placing(metrics.choice_s, clock, wall_clock, self._turns, self._decisions.append)
        self.planner = RoutePlanner(pool, rng)
        """Says which models may answer for a name."""

    @property
    def decisions(self) -> list[Decision]:
        """The last ones, oldest first."""
        return [
            Decision(
                request_id=request_id, model=model, ts=ts, attempt=attempt, choice=choice, split=split, policy=policy
            )
            for request_id, model, ts, attempt, choice, split, policy in self._decisions
        ]

    def read_at_once(
        self,
        model: str,
        fields: RoutingFields,
        num_bytes: int,
        *,
        cache_salt: str | None,
        session_key: int | None,
        split_key: bytes | None,
    ) -> ReadablePrompt | None:
        """As `read`, of usual prompts for endpoints of one bundle, which nobody need wait for. None: only `read` can tell."""
        started_s = self._clock()
        served = self._pool.served(model)
        digest = self._usual.digest(served.endpoints) if served.policy in POLICIES_BY_CONTENT else None
        if digest is None:
            return None
        salt = fields.cache_salt if cache_salt is None else cache_salt
        blocks = self._reader.read_at_once(fields, num_bytes, digest, served.adapter or None, salt)
        if blocks is None:
            return None
        return ReadablePrompt(
            by_digest={digest: blocks},
            text=None,
            read_s=self._clock() - started_s,
            session_key=session_key,
            split_key=split_key,
        )

    async def read(
        self,
        model: str,
        fields: RoutingFields,
        num_bytes: int,
        *,
        cache_salt: str | None = None,
        tenant: str = "",
        session_key: int | None = None,
        split_key: bytes | None = None,
    ) -> ReadablePrompt:
        """Read the prompt of a body of `num_bytes` with the bundle of every endpoint that may get it.

        `cache_salt` stands before the body's own; `tenant` bounds how much of one's is read at once. Policies that do not ask who holds
        a prompt only need its text."""
        started_s = self._clock()
        served = self._pool.served(model)
        salt = fields.cache_salt if cache_salt is None else cache_salt
        keys = ExtraKeys(adapter=served.adapter or None, cache_salt=salt)
        by_digest: dict[str, PromptBlocks] = {}
        digest = self._usual.digest(served.endpoints)
        digests = {endpoint.digest for endpoint in served.endpoints} if digest is None else {digest}
        needs_text = None in digests
        if served.policy in POLICIES_BY_CONTENT:
            for digest in digests:
                if digest is None:
                    continue
                blocks = await self._reader.read(fields, num_bytes, digest, keys=keys, tenant=tenant)
                if blocks is not None:
                    by_digest[digest] = blocks
        needs_text = needs_text or not by_digest
        text = None
        if needs_text and num_bytes <= LARGE_BYTES:
            text = read_text(fields, keys)
        elif needs_text:
            async with self._large:
                text = await asyncio.to_thread(read_text, fields, keys)
        read_s = self._clock() - started_s
        return ReadablePrompt(
            by_digest=by_digest, text=text, read_s=read_s, session_key=session_key, split_key=split_key
        )

    def sticky(self, model: str) -> Sticky:
        """Whose requests stay at one revision of the model."""
        return self._pool.sticky(model)

    def pick(
        self, request_id: str, model: str, prompt: ReadablePrompt | None, tried: frozenset[str]
    ) -> tuple[Reservation | None, Choice]:
        """Choose among the endpoints of `model` that were not tried, and reserve a place there. None: there is none.

        `prompt` None: it has none (a call that does not generate)."""
        served = self._pool.served(model)
        if prompt is None or tried or self._place is None or not served.is_plain:
            may_be_usual = prompt is not None and served.policy == "kv_aware" and not (tried or served.adapter)
            return self._pick_slowly(request_id, model, served, prompt, tried, may_be_usual=may_be_usual)
        counts = self._metrics.of_model(model)
        placed = self._place(request_id, model, served.endpoints, served.slow_start_s, prompt, counts)
        return placed or self._pick_slowly(request_id, model, served, prompt, tried, may_be_usual=False)

    def _pick_slowly(
        self,
        request_id: str,
        model: str,
        served: Served,
        prompt: ReadablePrompt | None,
        tried: frozenset[str],
        *,
        may_be_usual: bool,
    ) -> tuple[Reservation | None, Choice]:
        """As `pick`, whatever is the matter, and without the extension."""
        now_s = self._clock()
        endpoints, split = served.endpoints, None
        if served.weights is not None:
            split = self._split(endpoints, served.weights, tried, None if prompt is None else prompt.split_key)
            endpoints = _of_split(endpoints, split)
        picked = None
        if prompt is not None and may_be_usual:
            picked = self._usual.pick(model, endpoints, prompt, now_s)
        endpoint, choice = picked or self._pick_any(model, served, endpoints, prompt, tried, now_s)
        if split is not None and split.revision is None:
            choice = msgspec.structs.replace(choice, reason=f"no revision with a weight is ready; {choice.reason}")
        self._decisions.append((request_id, model, self._wall_clock(), len(tried), choice, split, served.policy))
        counts = self._metrics.of_model(model)
        counts.level(choice.level).value += 1
        if prompt is not None and not tried:
            self._metrics.choice_s.observe(prompt.read_s + self._clock() - now_s)
        if endpoint is None:
            return None, choice
        self._give(endpoint, prompt, served.adapter, now_s)
        num_tokens = choice.num_tokens or 0
        if not tried:  # a retry reads no further prompt
            counts.prefix_tokens.value += num_tokens
            counts.prefix_hit_tokens.value += choice.matched_tokens
        return self._reserve(endpoint, max(0, num_tokens - choice.matched_tokens), now_s), choice

    def _pick_any(
        self,
        model: str,
        served: Served,
        endpoints: Sequence[Endpoint],
        prompt: ReadablePrompt | None,
        tried: frozenset[str],
        now_s: float,
    ) -> tuple[Endpoint | None, Choice]:
        may_try = len(tried) < MAX_RETRIES
        candidates = self._snapshots.candidates(endpoints, prompt, served.adapter, now_s, may_try=may_try)
        choice = choose_by(served.policy, _request(model, prompt, tried), candidates, self._rng)
        return None if choice.endpoint_id is None else self._pool.get(choice.endpoint_id), choice

    def _give(self, endpoint: Endpoint, prompt: ReadablePrompt | None, adapter: str, now_s: float) -> None:
        """Remember what goes to the endpoint."""
        endpoint.last_turn = next(self._turns)
        endpoint.note_adapter(adapter, now_s)
        blocks = None if prompt is None else prompt.blocks_for(endpoint)
        if blocks:
            self._sent.record(endpoint.id, blocks.hashes, now_s)

    def _reserve(self, endpoint: Endpoint, uncached: int, now_s: float) -> Reservation:
        reservation = self._new_reservation(endpoint, uncached, now_s)
        if endpoint.health.is_ejected:
            reservation.is_trial = ejection.stage_of(endpoint.health, now_s) == "trial"
        return reservation

    def least_uncached(self, model: str, prompt: ReadablePrompt) -> int:
        """Tokens of a prompt that even the best worker of `model` would have to compute."""
        best_known = prompt.best_known
        if best_known is None:
            return 1
        most = self._snapshots.most_matched(self._pool.serving(model) or (), prompt, self._clock())
        return max(1, best_known.num_tokens - most)

    def _split(
        self, endpoints: Sequence[Endpoint], weights: Mapping[str, int], tried: frozenset[str], key: bytes | None
    ) -> Split:
        usable = {e.entry.revision for e in endpoints if e.is_usable and e.id not in tried}
        if key is not None:
            return Split(revision=choose_by_hash(weights, usable, key), weights=weights, is_sticky=True)
        return Split(revision=choose_by_weight(weights, usable, self._rng), weights=weights)


def _of_split(endpoints: Sequence[Endpoint], split: Split) -> tuple[Endpoint, ...]:
    """The endpoints of the revision that was chosen; if none could be, those with a weight: the choice will say why each is out."""
    if split.revision is not None:
        return tuple(e for e in endpoints if e.entry.revision == split.revision)
    return tuple(e for e in endpoints if split.weights.get(e.entry.revision, 0) > 0)


def _request(model: str, prompt: ReadablePrompt | None, tried: frozenset[str]) -> RouteRequest:
    best_known = None if prompt is None else prompt.best_known
    return RouteRequest(
        model=model,
        num_tokens=None if best_known is None else best_known.num_tokens,
        affinity_key=_affinity_key(best_known),
        excluded=tried,
        generates=prompt is not None,
        session_key=None if prompt is None else prompt.session_key,
    )


def _affinity_key(blocks: PromptBlocks | None) -> int | None:
    if blocks is None or not blocks.hashes:
        return None
    return blocks.hashes[min(len(blocks.hashes), max(1, AFFINITY_TOKENS // blocks.block_tokens)) - 1]
