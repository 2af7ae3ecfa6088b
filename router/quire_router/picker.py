"""Picks endpoints: gathers what is known into a snapshot, lets `scoring.choose` decide, remembers what was sent and why.

Decides on a snapshot and performs no request; the proxy acts on its answer.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from quire_contract.block_hash import ExtraKeys
from quire_contract.openai.requests import RoutingFields
from quire_contract.router_config import RoutingPolicy
from quire_router import ejection
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint, Reservation, pooled_speed
from quire_router.kv_index import KvIndex, SentIndex, extend_match
from quire_router.metrics import RouterMetrics
from quire_router.policies import POLICIES_BY_CONTENT, choose_by
from quire_router.prompts import PromptBlocks, PromptReader, read_text
from quire_router.retry_budget import MAX_RETRIES
from quire_router.route_plan import RoutePlanner, Sticky
from quire_router.scoring import Candidate, Choice, Knowledge, RouteRequest
from quire_router.splitting import choose_by_hash, choose_by_weight
from quire_router.warmup import share_of

SPECULATIVE_LIFE_S = 2.0
"""How long a block that was sent counts as held where KV events tell the truth: its own event is on the way."""
APPROXIMATE_LIFE_S = 600.0
"""How long it counts where there are no events."""
SILENT_AFTER_S = 3.0
"""An endpoint that reported before and has been silent for so long is avoided while another speaks."""
AFFINITY_TOKENS = 256
"""The hash level keys on this much of the prompt: enough to tell system prompts apart, little enough to keep a conversation together."""
MAX_DECISIONS = 512
LARGE_BYTES = 256 * 1024
"""To put the text of more than this together takes milliseconds, in which no stream would go on."""


class ReadablePrompt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a request's prompt, by the digest of the bundle that read it."""

    by_digest: dict[str, PromptBlocks]
    text: PromptBlocks | None
    """From the bare text, made when an endpoint has no bundle."""
    read_s: float = 0.0
    """Time it took, in seconds."""
    session_key: int | None = None
    """Hash of what names the client's session. None: nothing does."""
    split_key: bytes | None = None
    """What stays at one revision while requests are split. None: each request is drawn."""

    def blocks_for(self, endpoint: Endpoint) -> PromptBlocks | None:
        """As this endpoint's cache names them."""
        return self.by_digest.get(endpoint.digest) if endpoint.digest is not None else self.text


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
        self._index = index
        self._sent = sent
        self._reader = reader
        self._metrics = metrics
        self._rng = rng
        self._clock = clock
        self._wall_clock = wall_clock
        self._turn = 0
        self._large = asyncio.Semaphore(1)
        """The text of a large body is looked at in a thread, of one body at a time."""
        self.decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        """The last ones, oldest first."""
        self.planner = RoutePlanner(pool, rng)
        """Says which models may answer for a name."""

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
        endpoints = self._pool.serving(model) or ()
        salt = fields.cache_salt if cache_salt is None else cache_salt
        keys = ExtraKeys(adapter=self._pool.adapter(model) or None, cache_salt=salt)
        by_digest: dict[str, PromptBlocks] = {}
        if self._pool.policy(model) in POLICIES_BY_CONTENT:
            for digest in {e.digest for e in endpoints if e.digest is not None}:
                blocks = await self._reader.read(fields, num_bytes, digest, keys=keys, tenant=tenant)
                if blocks is not None:
                    by_digest[digest] = blocks
        needs_text = not by_digest or any(e.digest is None for e in endpoints)
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
        endpoints = self._pool.serving(model) or ()
        weights = self._pool.weights(model)
        split = (
            None
            if weights is None
            else self._split(endpoints, weights, tried, None if prompt is None else prompt.split_key)
        )
        if split is not None:
            endpoints = _of_split(endpoints, split)
        now_s = self._clock()
        policy, adapter = self._pool.policy(model), self._pool.adapter(model)
        candidates = self._snapshot(endpoints, prompt, adapter, now_s, may_try=len(tried) < MAX_RETRIES)
        choice = choose_by(policy, _request(model, prompt, tried), candidates, self._rng)
        if split is not None and split.revision is None:
            choice = msgspec.structs.replace(choice, reason=f"no revision with a weight is ready; {choice.reason}")
        self._note(
            Decision(
                request_id=request_id,
                model=model,
                ts=self._wall_clock(),
                attempt=len(tried),
                choice=choice,
                split=split,
                policy=policy,
            )
        )
        if prompt is not None and not tried:
            self._metrics.choice_s.observe(prompt.read_s + self._clock() - now_s)
        endpoint = self._pool.get(choice.endpoint_id) if choice.endpoint_id is not None else None
        if endpoint is None:
            return None, choice
        self._give(endpoint, prompt, adapter, now_s)
        num_tokens = choice.num_tokens or 0
        if not tried:  # a retry reads no further prompt
            counts = self._metrics.of_model(model)
            counts.prefix_tokens.inc(num_tokens)
            counts.prefix_hit_tokens.inc(choice.matched_tokens)
        return self._reserve(endpoint, max(0, num_tokens - choice.matched_tokens), now_s), choice

    def _note(self, decision: Decision) -> None:
        self.decisions.append(decision)
        self._metrics.count_choice(decision.model, decision.choice.level)

    def _give(self, endpoint: Endpoint, prompt: ReadablePrompt | None, adapter: str, now_s: float) -> None:
        """Remember what goes to the endpoint."""
        self._turn += 1
        endpoint.last_turn = self._turn
        endpoint.note_adapter(adapter, now_s)
        blocks = None if prompt is None else prompt.blocks_for(endpoint)
        if blocks:
            self._sent.record(endpoint.id, blocks.hashes, now_s)

    def _reserve(self, endpoint: Endpoint, uncached: int, now_s: float) -> Reservation:
        reservation = Reservation(endpoint, uncached, now_s)
        reservation.is_trial = ejection.stage_of(endpoint.health, now_s) == "trial"
        return reservation

    def least_uncached(self, model: str, prompt: ReadablePrompt) -> int:
        """Tokens of a prompt that even the best worker of `model` would have to compute."""
        best_known = _best_known(prompt)
        if best_known is None:
            return 1
        endpoints, now_s = self._pool.serving(model) or (), self._clock()
        held = self._held_blocks(endpoints, prompt)
        matched = (self._matched(e, prompt.blocks_for(e), held.get(e.id, 0), now_s)[0] for e in endpoints)
        return max(1, best_known.num_tokens - max(matched, default=0))

    def _split(
        self, endpoints: Sequence[Endpoint], weights: Mapping[str, int], tried: frozenset[str], key: bytes | None
    ) -> Split:
        usable = {e.entry.revision for e in endpoints if e.is_usable and e.id not in tried}
        if key is not None:
            return Split(revision=choose_by_hash(weights, usable, key), weights=weights, is_sticky=True)
        return Split(revision=choose_by_weight(weights, usable, self._rng), weights=weights)

    def _snapshot(
        self,
        endpoints: Sequence[Endpoint],
        prompt: ReadablePrompt | None,
        adapter: str,
        now_s: float,
        *,
        may_try: bool,
    ) -> tuple[Candidate, ...]:
        speeds = pooled_speed(endpoints)
        held = self._held_blocks(endpoints, prompt)
        found = tuple(self._candidate(e, prompt, adapter, held.get(e.id, 0), speeds[e.id], now_s) for e in endpoints)
        out = self._left_out(endpoints, now_s, may_try=may_try)
        return found if not out else tuple(_marked(c) if c.endpoint_id in out else c for c in found)

    def _left_out(self, endpoints: Sequence[Endpoint], now_s: float, *, may_try: bool) -> frozenset[str]:
        """Endpoints that failed too often, and get no request now."""
        if not any(e.health.is_ejected for e in endpoints):
            return frozenset()
        members = [ejection.Member(e.id, e.health, e.trial is not None) for e in endpoints if e.is_usable]
        return ejection.left_out(members, now_s, self._pool.faults, may_try=may_try)

    def _held_blocks(self, endpoints: Sequence[Endpoint], prompt: ReadablePrompt | None) -> dict[str, int]:
        """Leading blocks that each endpoint in step says it holds."""
        if prompt is None:
            return {}
        held: dict[str, int] = {}
        for digest, blocks in prompt.by_digest.items():
            held |= self._index.match_prefix(
                blocks.hashes, [e.id for e in endpoints if e.synced and e.digest == digest]
            )
        return held

    def _candidate(
        self,
        endpoint: Endpoint,
        prompt: ReadablePrompt | None,
        adapter: str,
        held: int,
        ms_per_token: float,
        now_s: float,
    ) -> Candidate:
        blocks = None if prompt is None else prompt.blocks_for(endpoint)
        matched_tokens, knowledge = self._matched(endpoint, blocks, held, now_s)
        load, promised_tokens = endpoint.load()
        report, settings = endpoint.report, self._pool.settings
        slots = (0 if report is None else report.max_num_seqs) or settings.admission.in_flight_per_worker
        return Candidate(
            endpoint_id=endpoint.id,
            ready=endpoint.ready,
            draining=endpoint.draining,
            silent=report is not None and now_s - endpoint.report_s > SILENT_AFTER_S,
            knowledge=knowledge,
            matched_tokens=matched_tokens,
            load=load,
            promised_tokens=promised_tokens,
            ms_per_token=ms_per_token,
            free_tokens=None if report is None else report.free_blocks * report.block_size,
            recent_ms=endpoint.recent_ms(now_s),
            role=endpoint.entry.role,
            adapter_ms=endpoint.adapter_wait_ms(adapter, now_s),
            last_turn=endpoint.last_turn,
            warmth=share_of(endpoint.warmup.since_s, now_s, settings.choice.slow_start_s),
            is_busy=load >= slots or (report is not None and report.waiting > 0),
        )

    def _matched(
        self, endpoint: Endpoint, blocks: PromptBlocks | None, held: int, now_s: float
    ) -> tuple[int, Knowledge]:
        """Leading tokens that the endpoint is believed to hold, and how that is known. The last token is always computed."""
        if blocks is None:
            return 0, "none"
        if endpoint.synced and endpoint.digest is not None:
            since_s = now_s - SPECULATIVE_LIFE_S
            count = extend_match(self._index, self._sent, endpoint.id, blocks.hashes, held, since_s)
            knowledge: Knowledge = "precise"
        else:
            count = self._sent.match_prefix(endpoint.id, blocks.hashes, now_s - APPROXIMATE_LIFE_S)
            knowledge = "approximate"
        return min(count * blocks.block_tokens, max(0, blocks.num_tokens - 1)), knowledge


def _marked(candidate: Candidate) -> Candidate:
    return msgspec.structs.replace(candidate, ejected=True)


def _of_split(endpoints: Sequence[Endpoint], split: Split) -> tuple[Endpoint, ...]:
    """The endpoints of the revision that was chosen; if none could be, those with a weight: the choice will say why each is out."""
    if split.revision is not None:
        return tuple(e for e in endpoints if e.entry.revision == split.revision)
    return tuple(e for e in endpoints if split.weights.get(e.entry.revision, 0) > 0)


def _request(model: str, prompt: ReadablePrompt | None, tried: frozenset[str]) -> RouteRequest:
    best_known = _best_known(prompt)
    return RouteRequest(
        model=model,
        num_tokens=None if best_known is None else best_known.num_tokens,
        affinity_key=_affinity_key(best_known),
        excluded=tried,
        generates=prompt is not None,
        session_key=None if prompt is None else prompt.session_key,
    )


def _best_known(prompt: ReadablePrompt | None) -> PromptBlocks | None:
    """Token blocks if any bundle gave them, else text blocks."""
    if prompt is None:
        return None
    return next(iter(prompt.by_digest.values()), prompt.text)


def _affinity_key(blocks: PromptBlocks | None) -> int | None:
    if blocks is None or not blocks.hashes:
        return None
    return blocks.hashes[min(len(blocks.hashes), max(1, AFFINITY_TOKENS // blocks.block_tokens)) - 1]
