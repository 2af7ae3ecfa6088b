"""The router's choice among exact workers: its own Endpoint, KvIndex, SentIndex, room_at and choose, fed as the wire would feed them.

Load reports come on change, at most every MIN_INTERVAL_S; KV events with the step that caused them.
"""

import random
from math import inf

from quire_cli.simulate.exact_worker import ExactWorker, prompt_of
from quire_cli.simulate.request import Request
from quire_contract.block_hash import hash_blocks, wire_hash, wire_hashes
from quire_contract.load_report import MAX_INTERVAL_S, MIN_INTERVAL_S
from quire_contract.router_config import EndpointEntry
from quire_contract.router_settings import AdmissionSettings
from quire_router.endpoints import Endpoint, Reservation, pooled_speed
from quire_router.kv_index import KvIndex, SentIndex, extend_match
from quire_router.policies import choose_by
from quire_router.revision_stats import RevisionCounts
from quire_router.room import room_at
from quire_router.scoring import Candidate, RouteRequest
from quire_worker.kv.events import BlocksStored

MODEL = "simulated"
SPECULATIVE_LIFE_S = 2.0
AFFINITY_TOKENS = 256
"""Both as quire_router.picker has them, which needs more libraries than the command line installs."""


class ExactRouter:
    """One for the simulation."""

    def __init__(self, rules: AdmissionSettings, seed: int, block_size: int) -> None:
        self._rules = rules
        self._rng = random.Random(seed)  # noqa: S311 - simulated chance
        self._block_size = block_size
        self._index, self._sent = KvIndex(), SentIndex()
        self.workers: list[ExactWorker] = []
        self._endpoints: dict[int, Endpoint] = {}
        self._places: dict[int, Reservation] = {}
        """Of requests under way, by number."""
        self._due: dict[int, float] = {}
        """Worker -> when its next load report goes out, because something changed."""

    def join(self, worker: ExactWorker, now_s: float) -> None:
        """A worker takes requests, for the first time or again after it was to drain."""
        self.workers.append(worker)
        known = self._endpoints.get(worker.number)
        if known is not None:
            known.ready = True
            return
        name = str(worker.number)
        entry = EndpointEntry(id=name, url=f"http://{name}", models=[MODEL], events=f"tcp://{name}")
        endpoint = Endpoint(entry, RevisionCounts())
        endpoint.ready = endpoint.synced = True
        endpoint.take_report(worker.report(now_s), now_s)
        self._endpoints[worker.number] = endpoint

    def leave(self, worker: ExactWorker) -> None:
        """It takes no more. Its last requests are still counted."""
        endpoint = self._endpoints.get(worker.number)
        if endpoint is None or worker not in self.workers:
            return
        endpoint.ready = False
        self.workers.remove(worker)
        self._index.clear(endpoint.id)
        self._sent.clear(endpoint.id)

    def changed(self, worker: ExactWorker, now_s: float) -> None:
        """Its engine took a step, or a request: what it publishes."""
        endpoint = self._endpoints[worker.number]
        events = worker.take_cache_events()
        if endpoint.ready:
            for event in events:
                if isinstance(event, BlocksStored):
                    self._index.add(endpoint.id, wire_hashes(event.digests))
                else:
                    self._index.remove(endpoint.id, [wire_hash(event.digest)])
        if now_s - endpoint.report_s >= MIN_INTERVAL_S:
            self._report(worker, now_s)
        else:
            self._due.setdefault(worker.number, endpoint.report_s + MIN_INTERVAL_S)

    def refresh(self) -> None:
        """Nothing to learn that reports do not tell."""

    def first_token(self, request: Request, now_s: float) -> None:
        """The answer began."""
        self._places[request.number].first_byte(now_s, is_stream=True)

    def done(self, request: Request) -> None:
        """The answer ended."""
        self._places.pop(request.number).give_back()

    def room_of(self, worker: ExactWorker, now_s: float) -> int:
        """Requests that may start because of this worker."""
        endpoint = self._endpoints[worker.number]
        self._catch_up(now_s)
        room = room_at(endpoint, self._rules, now_s)
        return 0 if room.is_empty or not endpoint.is_usable else room.requests

    def has_room(self, now_s: float) -> bool:
        """Whether a request may start."""
        self._catch_up(now_s)
        return any(not room_at(self._endpoints[w.number], self._rules, now_s).is_empty for w in self.workers)

    def pick(self, request: Request, now_s: float) -> ExactWorker:
        """Where it goes; counted there until `done`."""
        self._catch_up(now_s)
        hashes = wire_hashes(hash_blocks(prompt_of(request.chain), self._block_size))
        endpoints = [self._endpoints[worker.number] for worker in self.workers]
        speeds = pooled_speed([endpoint.learnt_ms_per_token for endpoint in endpoints])
        held = self._index.match_prefix(hashes, [endpoint.id for endpoint in endpoints])
        snapshot = [
            self._candidate(e, hashes, held.get(e.id, 0), speed, now_s, request)
            for e, speed in zip(endpoints, speeds, strict=True)
        ]
        key = hashes[min(len(hashes), max(1, AFFINITY_TOKENS // self._block_size)) - 1] if hashes else None
        wanted = RouteRequest(model=MODEL, num_tokens=request.prompt, affinity_key=key)
        choice = choose_by("kv_aware", wanted, snapshot, self._rng)
        assert choice.endpoint_id is not None, choice.reason
        endpoint = self._endpoints[int(choice.endpoint_id)]
        self._sent.record(endpoint.id, hashes, now_s)
        reservation = Reservation(endpoint, max(0, request.prompt - choice.matched_tokens), now_s)
        reservation.take()
        worker = next(one for one in self.workers if one.number == int(choice.endpoint_id))
        self._places[request.number] = reservation
        return worker

    def _candidate(
        self, endpoint: Endpoint, hashes: list[int], held: int, ms_per_token: float, now_s: float, request: Request
    ) -> Candidate:
        """As Picker's."""
        count = extend_match(self._index, self._sent, endpoint.id, hashes, held, now_s - SPECULATIVE_LIFE_S)
        load, promised = endpoint.load()
        report = endpoint.report
        return Candidate(
            endpoint_id=endpoint.id,
            ready=endpoint.ready,
            draining=endpoint.draining,
            knowledge="precise",
            matched_tokens=min(count * self._block_size, request.prompt - 1),
            load=load,
            promised_tokens=promised,
            ms_per_token=ms_per_token,
            free_tokens=None if report is None else report.free_blocks * report.block_size,
            recent_ms=endpoint.recent_ms(now_s),
            last_turn=endpoint.last_turn,
        )

    def _catch_up(self, now_s: float) -> None:
        """Reports that went out meanwhile: a worker that changed tells its state by now, one that did not is heard of again."""
        for worker in self.workers:
            due_s = self._due.get(worker.number, inf)
            if due_s <= now_s or self._endpoints[worker.number].report_s + MAX_INTERVAL_S <= now_s:
                self._report(worker, now_s)

    def _report(self, worker: ExactWorker, now_s: float) -> None:
        self._due.pop(worker.number, None)
        self._endpoints[worker.number].take_report(worker.report(now_s), now_s)
