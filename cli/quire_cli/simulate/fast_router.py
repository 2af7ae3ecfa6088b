"""The router's choice among fast workers: scoring.choose's policy kv_aware, on plain lists, because a day has a million choices.

The constants and rules are scoring's and room's; tests/cli/simulate holds `pick` to scoring.choose on random snapshots. What is coarser: a
worker's state is known at once, not up to 100 ms later.
"""

import random
from collections.abc import Sequence
from math import exp, inf

from quire_cli.simulate.fast_worker import FastWorker
from quire_cli.simulate.prefix_cache import Index
from quire_cli.simulate.request import Request
from quire_contract.router_settings import AdmissionSettings
from quire_router.endpoints import RECENT_LIFE_S
from quire_router.scoring import (
    BLOCK_WAIT_MS,
    DECODE_MS_PER_REQUEST,
    DEFAULT_MS_PER_TOKEN,
    GUARD_FACTOR,
    GUARD_SLACK,
    LEAVE_MS,
    LEAVE_SHARE,
    PROMISED_WEIGHT,
    TIE_MS,
    TIE_SHARE,
)

_NOTHING: dict[int, int] = {}
_REBASE_S = 300.0


class FastRouter:
    """One for the simulation. Its lists are parallel: one place for each worker that takes requests."""

    def __init__(self, rules: AdmissionSettings, seed: int, max_num_seqs: int, block_size: int) -> None:
        self.index: Index = {}
        self._rules = rules
        self._rng = random.Random(seed)  # noqa: S311 - simulated chance
        self._max_num_seqs = max_num_seqs
        self._block_size = block_size
        self.workers: list[FastWorker] = []
        self._place: dict[int, int] = {}
        self._loads: list[int] = []
        self._base_ms: list[float] = []
        """What a request without cached tokens would wait for, its own prefill aside."""
        self._free: list[int] = []
        self._recent: list[float] = []
        """Ms of work given lately, decaying: as if all of it grew from `_epoch_s` on, so that comparing needs no exponential."""
        self._epoch_s = 0.0
        self._ms_per_token = DEFAULT_MS_PER_TOKEN
        self._hint = 0

    def join(self, worker: FastWorker, now_s: float) -> None:
        """A worker takes requests."""
        self._place[worker.number] = len(self.workers)
        self.workers.append(worker)
        self._loads.append(0)
        self._base_ms.append(0.0)
        self._free.append(worker.kv_tokens)
        self._recent.append(self._rng.random() * 1e-6)  # equals are told apart at random
        self.changed(worker, now_s)

    def leave(self, worker: FastWorker) -> None:
        """It takes no more."""
        place = self._place.pop(worker.number, None)
        if place is None:
            return
        for column in (self.workers, self._loads, self._base_ms, self._free, self._recent):
            del column[place]
        self._place = {one.number: position for position, one in enumerate(self.workers)}

    def changed(self, worker: FastWorker, now_s: float) -> None:
        """Its load is another one."""
        del now_s
        place = self._place.get(worker.number)
        if place is not None:
            load = worker.load
            self._loads[place] = load
            self._base_ms[place] = (
                worker.uncached_tokens * self._ms_per_token * PROMISED_WEIGHT + load * DECODE_MS_PER_REQUEST
            )
            self._free[place] = worker.kv_tokens - worker.kv_used

    def refresh(self) -> None:
        """Learn the workers' prefill speed anew."""
        speeds = [worker.prefill_tokens_per_s for worker in self.workers if worker.prefill_tokens_per_s > 0]
        if speeds:
            self._ms_per_token = sum(1000.0 / speed for speed in speeds) / len(speeds)

    def room_of(self, worker: FastWorker, now_s: float) -> int:
        """Requests that may start because of this worker, as room.room_by_report has it."""
        del now_s
        rules, waiting, running = self._rules, worker.num_waiting, worker.num_running
        if worker.number not in self._place or waiting > rules.waiting_per_worker:
            return 0
        if worker.kv_used >= rules.kv_use_limit * worker.kv_tokens and running + waiting:
            return 0
        return rules.waiting_per_worker + 1 - waiting + max(0, self._max_num_seqs - running - waiting)

    def has_room(self, now_s: float) -> bool:
        """Whether a request may start. The worker that had room last is asked first."""
        workers = self.workers
        for turn in range(self._hint, self._hint + len(workers)):
            if self.room_of(workers[turn % len(workers)], now_s) > 0:
                self._hint = turn % len(workers)
                return True
        return False

    def pick(self, request: Request, now_s: float) -> FastWorker:
        """Where it goes; noted there as work given lately."""
        prompt, ms = request.prompt, self._ms_per_token
        matched = self._matched(request) if self.index else _NOTHING
        place = self._cheapest(self._costs(prompt, matched), prompt * ms, matched) if len(self.workers) > 1 else 0
        work_ms = (prompt - matched.get(place, 0)) * ms + DECODE_MS_PER_REQUEST
        if now_s - self._epoch_s > _REBASE_S:
            shrink = exp((self._epoch_s - now_s) / RECENT_LIFE_S)
            self._recent = [work * shrink for work in self._recent]
            self._epoch_s = now_s
        self._recent[place] += work_ms * exp((now_s - self._epoch_s) / RECENT_LIFE_S)
        return self.workers[place]

    def _matched(self, request: Request) -> dict[int, int]:
        """Place -> leading tokens of the prompt held there, where there are any."""
        found: dict[int, int] = {}
        position, most, size = 0, request.prompt - 1, self._block_size
        alive: dict[int, int] | None = None
        for name, end in request.chain:
            holders = self.index.get(name)
            if not holders:
                break
            reached: dict[int, int] = {}
            for number, stop in holders.items():
                if alive is not None and number not in alive:
                    continue
                place = self._place.get(number)
                if place is not None and stop > position:
                    found[place] = min(stop, end, most) // size * size
                    if stop >= end:
                        reached[number] = end
            alive, position = reached, end
            if not alive:
                break
        return {place: tokens for place, tokens in found.items() if tokens > 0}

    def _costs(self, prompt: int, matched: dict[int, int]) -> list[float]:
        """Of every place, in ms, without what the whole prompt's prefill costs everywhere; inf: over its share of the load."""
        loads, costs = self._loads, self._base_ms
        mean = (sum(loads) + 1) / len(loads)
        most = max(GUARD_FACTOR * mean, mean + GUARD_SLACK) - 1
        if max(loads) > most:
            costs = [base if load <= most else inf for base, load in zip(costs, loads, strict=True)]
        elif matched:
            costs = costs.copy()
        for place, tokens in matched.items():
            costs[place] -= tokens * self._ms_per_token
        if min(self._free) < prompt:
            costs = costs.copy()
            for place, free in enumerate(self._free):
                uncached = prompt - matched.get(place, 0)
                if free < uncached:
                    costs[place] += BLOCK_WAIT_MS * (1 + (uncached - free) / uncached)
        return costs

    def _cheapest(self, costs: list[float], whole_ms: float, matched: dict[int, int]) -> int:
        """As scoring._cheapest; a cost is `whole_ms` more than `costs` says."""
        best = self._least(range(len(costs)), costs, min(costs), whole_ms, matched)
        if not matched:
            return best
        usable = {place: tokens for place, tokens in matched.items() if costs[place] < inf}
        longest = max(usable.values(), default=0)
        if matched.get(best, 0) == longest:
            return best
        holders = [place for place, tokens in usable.items() if tokens == longest]
        holder = self._least(holders, costs, min(costs[place] for place in holders), whole_ms, matched)
        gain_ms = costs[holder] - costs[best]
        return best if gain_ms > max(LEAVE_MS, LEAVE_SHARE * (whole_ms + costs[holder])) else holder

    def _least(
        self, places: Sequence[int], costs: list[float], least: float, whole_ms: float, matched: dict[int, int]
    ) -> int:
        limit = least + TIE_MS + TIE_SHARE * (least + whole_ms)
        tied = [place for place in places if costs[place] <= limit]
        if len(tied) == 1:
            return tied[0]
        if matched:
            longest = max(matched.get(place, 0) for place in tied)
            tied = [place for place in tied if matched.get(place, 0) == longest]
        return min(tied, key=self._recent.__getitem__)
