"""Picks endpoints: gathers what is known into a snapshot, lets `scoring.choose` decide, remembers what was sent and why.

Decides on a snapshot and performs no request; the proxy acts on its answer.
"""

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from quire_contract.openai.requests import RoutingFields
from quire_router.endpoints import Endpoint, EndpointPool, Reservation, pooled_speed
from quire_router.kv_index import KvIndex, SentIndex, extend_match
from quire_router.metrics import RouterMetrics
from quire_router.prompts import PromptBlocks, PromptReader, read_text
from quire_router.scoring import Candidate, Choice, Knowledge, RouteRequest, choose
from quire_router.splitting import choose_by_weight, order_targets

SPECULATIVE_LIFE_S = 2.0
"""How long a block that was sent counts as held where KV events tell the truth: its own event is on the way."""
APPROXIMATE_LIFE_S = 600.0
"""How long it counts where there are no events."""
SILENT_AFTER_S = 3.0
"""An endpoint that reported before and has been silent for so long is avoided while another speaks."""
AFFINITY_TOKENS = 256
"""The hash level keys on this much of the prompt: enough to tell system prompts apart, little enough to keep a conversation together."""
MAX_DECISIONS = 512


class ReadablePrompt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a request's prompt, by the digest of the bundle that read it."""

    by_digest: dict[str, PromptBlocks]
    text: PromptBlocks | None
    """From the bare text, made when an endpoint has no bundle."""
    read_s: float = 0.0
    """Time it took, in seconds."""

    def blocks_for(self, endpoint: Endpoint) -> PromptBlocks | None:
        """As this endpoint's cache names them."""
        return self.by_digest.get(endpoint.digest) if endpoint.digest is not None else self.text


class Split(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a request was given to one revision of a service before an endpoint was chosen there."""

    revision: str | None
    """None: no revision with a weight has an endpoint left."""
    weights: Mapping[str, int]


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
        self.decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        """The last ones, oldest first."""

    def targets(self, model: str) -> tuple[tuple[str, ...], float | None]:
        """The models to try for a name in this order, those with a ready worker first; and the limit in seconds for a stream's first event
        (None: the usual one)."""
        route = self._pool.route(model)
        if route is None:
            return (model,), None
        ordered = order_targets(route, self._rng)
        return tuple(sorted(ordered, key=lambda target: not self._pool.has_usable(target))), route.timeout_s

    async def read(self, model: str, fields: RoutingFields, body: bytes, path: str) -> ReadablePrompt:
        """Read the prompt of a request to `path` with the bundle of every endpoint that may get it."""
        started_s = self._clock()
        endpoints = self._pool.serving(model) or ()
        by_digest: dict[str, PromptBlocks] = {}
        for digest in {e.digest for e in endpoints if e.digest is not None}:
            blocks = await self._reader.read(fields, body, digest, path)
            if blocks is not None:
                by_digest[digest] = blocks
        needs_text = not by_digest or any(e.digest is None for e in endpoints)
        text = read_text(fields) if needs_text else None
        return ReadablePrompt(by_digest=by_digest, text=text, read_s=self._clock() - started_s)

    def pick(
        self, request_id: str, model: str, prompt: ReadablePrompt | None, tried: frozenset[str]
    ) -> tuple[Reservation | None, Choice]:
        """Choose among the endpoints of `model` that were not tried, and reserve a place there. None: there is none.

        `prompt` None: it has none (a call that does not generate)."""
        endpoints = self._pool.serving(model) or ()
        weights = self._pool.weights(model)
        split = None if weights is None else self._split(endpoints, weights, tried)
        if split is not None:
            endpoints = _of_split(endpoints, split)
        now_s = self._clock()
        candidates = self._snapshot(endpoints, prompt, now_s)
        best_known = _best_known(prompt)
        request = RouteRequest(
            model=model,
            num_tokens=None if best_known is None else best_known.num_tokens,
            affinity_key=_affinity_key(best_known),
            excluded=tried,
        )
        choice = choose(request, candidates, self._rng)
        if split is not None and split.revision is None:
            choice = msgspec.structs.replace(choice, reason=f"no revision with a weight is ready; {choice.reason}")
        self.decisions.append(
            Decision(
                request_id=request_id,
                model=model,
                ts=self._wall_clock(),
                attempt=len(tried),
                choice=choice,
                split=split,
            )
        )
        self._metrics.choices.labels(model, choice.level).inc()
        if prompt is not None:
            self._metrics.choice_s.observe(prompt.read_s + self._clock() - now_s)
        endpoint = self._pool.get(choice.endpoint_id) if choice.endpoint_id is not None else None
        if endpoint is None:
            return None, choice
        num_tokens = choice.num_tokens or 0
        blocks = None if prompt is None else prompt.blocks_for(endpoint)
        if blocks:
            self._sent.record(endpoint.id, blocks.hashes, now_s)
        counts = self._metrics.of_model(model)
        counts.prefix_tokens.inc(num_tokens)
        counts.prefix_hit_tokens.inc(choice.matched_tokens)
        return Reservation(endpoint, max(0, num_tokens - choice.matched_tokens), now_s), choice

    def least_uncached(self, model: str, prompt: ReadablePrompt) -> int:
        """Tokens of a prompt that even the best worker of `model` would have to compute."""
        best_known = _best_known(prompt)
        if best_known is None:
            return 1
        endpoints, now_s = self._pool.serving(model) or (), self._clock()
        held = self._held_blocks(endpoints, prompt)
        matched = (self._matched(e, prompt.blocks_for(e), held.get(e.id, 0), now_s)[0] for e in endpoints)
        return max(1, best_known.num_tokens - max(matched, default=0))

    def _split(self, endpoints: Sequence[Endpoint], weights: Mapping[str, int], tried: frozenset[str]) -> Split:
        usable = {e.entry.revision for e in endpoints if e.is_usable and e.id not in tried}
        return Split(revision=choose_by_weight(weights, usable, self._rng), weights=weights)

    def _snapshot(
        self, endpoints: Sequence[Endpoint], prompt: ReadablePrompt | None, now_s: float
    ) -> tuple[Candidate, ...]:
        speeds = pooled_speed(endpoints)
        held = self._held_blocks(endpoints, prompt)
        return tuple(self._candidate(e, prompt, held.get(e.id, 0), speeds[e.id], now_s) for e in endpoints)

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
        self, endpoint: Endpoint, prompt: ReadablePrompt | None, held: int, ms_per_token: float, now_s: float
    ) -> Candidate:
        blocks = None if prompt is None else prompt.blocks_for(endpoint)
        matched_tokens, knowledge = self._matched(endpoint, blocks, held, now_s)
        load, promised_tokens = endpoint.load()
        report = endpoint.report
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


def _of_split(endpoints: Sequence[Endpoint], split: Split) -> tuple[Endpoint, ...]:
    """The endpoints of the revision that was chosen; if none could be, those with a weight: the choice will say why each is out."""
    if split.revision is not None:
        return tuple(e for e in endpoints if e.entry.revision == split.revision)
    return tuple(e for e in endpoints if split.weights.get(e.entry.revision, 0) > 0)


def _best_known(prompt: ReadablePrompt | None) -> PromptBlocks | None:
    """Token blocks if any bundle gave them, else text blocks."""
    if prompt is None:
        return None
    return next(iter(prompt.by_digest.values()), prompt.text)


def _affinity_key(blocks: PromptBlocks | None) -> int | None:
    if blocks is None or not blocks.hashes:
        return None
    return blocks.hashes[min(len(blocks.hashes), max(1, AFFINITY_TOKENS // blocks.block_tokens)) - 1]
