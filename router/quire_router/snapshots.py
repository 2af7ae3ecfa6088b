"""Gathers what is known of a model's endpoints, for one prompt at one moment: the snapshots that `scoring` and `usual_choice` decide on."""

from collections.abc import Sequence

import msgspec

from quire_router import ejection
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint, pooled_speed
from quire_router.kv_index import KvIndex, SentIndex, extend_match
from quire_router.prompts import PromptBlocks
from quire_router.scoring import Candidate, Knowledge
from quire_router.usual_choice import Columns
from quire_router.warmup import share_of

SPECULATIVE_LIFE_S = 2.0
"""How long a block that was sent counts as held where KV events tell the truth: its own event is on the way."""
APPROXIMATE_LIFE_S = 600.0
"""How long it counts where there are no events."""
SILENT_AFTER_S = 3.0
"""An endpoint that reported before and has been silent for so long is avoided while another speaks."""


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

    @property
    def best_known(self) -> PromptBlocks | None:
        """Token blocks if any bundle gave them, else text blocks."""
        return next(iter(self.by_digest.values()), self.text)


class _Speeds(msgspec.Struct, frozen=True):
    """Of the endpoints of one model, in their order."""

    own: list[float | None]
    pooled: list[float]


class Snapshots:
    """One for the process. Times: seconds of the process's monotonic clock."""

    def __init__(self, pool: EndpointPool, index: KvIndex, sent: SentIndex) -> None:
        self._pool = pool
        self._index = index
        self._sent = sent
        self._speeds = _Speeds([], [])
        """As they were pooled last: mostly one model is asked for again and again, and speeds change with reports only."""

    def columns(self, endpoints: Sequence[Endpoint], prompt: ReadablePrompt, now_s: float) -> Columns | None:
        """The usual snapshot. None: something about one of them is out of the ordinary, so `candidates` must tell."""
        by_digest = prompt.by_digest
        if len(by_digest) != 1 or not endpoints:
            return None
        ((digest, blocks),) = by_digest.items()
        slow_start_s, hashes = self._pool.settings.choice.slow_start_s, blocks.hashes
        index, sent = self._index, self._sent
        size, most, since_s = blocks.block_tokens, max(0, blocks.num_tokens - 1), now_s - SPECULATIVE_LIFE_S
        ids = [endpoint.id for endpoint in endpoints]
        held = index.match_prefix(hashes, ids)
        matched, loads, promised, free = [], [], [], []
        for endpoint in endpoints:
            report = endpoint.report
            if not (endpoint.ready and endpoint.synced) or endpoint.draining or endpoint.digest != digest:
                return None
            if endpoint.health.is_ejected or endpoint.entry.role == "prefill":
                return None
            if now_s - endpoint.warmup.since_s < slow_start_s:
                return None
            if report is not None and now_s - endpoint.report_s > SILENT_AFTER_S:
                return None
            count = held.get(endpoint.id, 0)
            if count < len(hashes) and sent.has(endpoint.id, hashes[count], since_s):
                count = extend_match(index, sent, endpoint.id, hashes, count, since_s)
            matched.append(min(count * size, most))
            load, tokens = endpoint.load()
            loads.append(load)
            promised.append(tokens)
            free.append(None if report is None else report.free_blocks * report.block_size)
        return Columns(ids, matched, loads, promised, free, self._pooled(endpoints))

    def candidates(
        self,
        endpoints: Sequence[Endpoint],
        prompt: ReadablePrompt | None,
        adapter: str,
        now_s: float,
        *,
        may_try: bool,
    ) -> tuple[Candidate, ...]:
        """The snapshot whatever is the matter with them. `may_try`: this request may decide whether an endpoint that was left out comes
        back."""
        speeds = self._pooled(endpoints)
        held = self._held_blocks(endpoints, prompt)
        found = tuple(
            self._candidate(e, prompt, adapter, held.get(e.id, 0), speed, now_s)
            for e, speed in zip(endpoints, speeds, strict=True)
        )
        out = self._left_out(endpoints, now_s, may_try=may_try)
        return found if not out else tuple(_marked(c) if c.endpoint_id in out else c for c in found)

    def most_matched(self, endpoints: Sequence[Endpoint], prompt: ReadablePrompt, now_s: float) -> int:
        """Leading tokens that the best of them is believed to hold."""
        held = self._held_blocks(endpoints, prompt)
        matched = (self._matched(e, prompt.blocks_for(e), held.get(e.id, 0), now_s)[0] for e in endpoints)
        return max(matched, default=0)

    def _pooled(self, endpoints: Sequence[Endpoint]) -> list[float]:
        own = [endpoint.learnt_ms_per_token for endpoint in endpoints]
        if own != self._speeds.own:
            self._speeds = _Speeds(own, pooled_speed(own))
        return self._speeds.pooled

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
