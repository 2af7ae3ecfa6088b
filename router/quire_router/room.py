"""How much more a worker can take, from its load report and what we have sent there since. Pure functions.

A worker is full when its queue is longer than `waiting_per_worker`, or when requests use more than `kv_use_limit` of its KV blocks while it
runs something. Room beyond the queue counts too: free slots of the batch. One that reports nothing, or nothing any more, is full by our own
count of requests there; a report that is late never stops requests, it only stops being believed. One that has just become ready, and will
report, gets a few requests until it has: all that was held for it might not fit, and who waits there cannot go to the next one.
"""

import math
from typing import NamedTuple

from quire_contract.load_report import LOST_AFTER_S, LoadReport
from quire_contract.router_settings import AdmissionSettings
from quire_router.endpoints import Endpoint


class Room(NamedTuple):
    """What may start now."""

    requests: int
    tokens: float
    """Uncached prompt tokens; the request that crosses the bound may still start."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing may start."""
        return self.requests <= 0 or self.tokens <= 0


NO_ROOM = Room(0, 0.0)


def room_by_report(report: LoadReport, unreported: int, unreported_tokens: int, rules: AdmissionSettings) -> Room:
    """Room at a worker of which `report` holds, when `unreported` requests with `unreported_tokens` to prefill are on their way to it."""
    if report.waiting > rules.waiting_per_worker:
        return NO_ROOM
    slots = max(0, (report.max_num_seqs or rules.in_flight_per_worker) - report.running - report.waiting)
    requests = rules.waiting_per_worker + 1 - report.waiting + slots - unreported
    if requests <= 0:
        return NO_ROOM
    if report.total_blocks <= 0:
        return Room(requests, math.inf)
    used = report.total_blocks - report.free_blocks
    tokens = (rules.kv_use_limit * report.total_blocks - used) * report.block_size - unreported_tokens
    if tokens <= 0 and report.running + report.waiting + unreported == 0:
        return Room(1, 1.0)  # nothing that could end and make room runs there
    return Room(requests, tokens) if tokens > 0 else NO_ROOM


def least_on_the_way(report: LoadReport, unanswered: int, in_flight: int) -> int:
    """Requests of ours that cannot be in the report, however long ago they were sent: a worker whose API is busy may hold them for longer
    than any fixed time. Who has been answered runs there at most as often as anything runs: the rest are clients that read slowly."""
    return unanswered + min(in_flight - unanswered, report.running) - report.running - report.waiting


def room_by_count(in_flight: int, rules: AdmissionSettings) -> Room:
    """Room at a worker that tells nothing of itself, with `in_flight` requests of ours."""
    return Room(max(0, rules.in_flight_per_worker - in_flight), math.inf)


def is_roomy(endpoint: Endpoint, rules: AdmissionSettings, now_s: float) -> bool:
    """Whether there is plainly room at `endpoint`: even if its report misses every request of ours. False: `room_at` has to tell."""
    report = endpoint.report
    if report is None or report.waiting or now_s - endpoint.report_s > LOST_AFTER_S:
        return False
    if endpoint.num_in_flight + report.running >= (report.max_num_seqs or rules.in_flight_per_worker):
        return False
    total = report.total_blocks
    tokens = (rules.kv_use_limit * total - (total - report.free_blocks)) * report.block_size
    return tokens > endpoint.pending_tokens or total <= 0


def room_at(endpoint: Endpoint, rules: AdmissionSettings, now_s: float) -> Room:
    """Room at `endpoint`, which takes requests."""
    report = endpoint.report
    if report is None and endpoint.entry.events is not None and now_s - endpoint.warmup.ready_s < LOST_AFTER_S:
        return Room(max(0, max(1, rules.waiting_per_worker) - endpoint.num_in_flight), math.inf)
    if report is None or now_s - endpoint.report_s > LOST_AFTER_S:
        return room_by_count(endpoint.num_in_flight, rules)
    load, tokens = endpoint.load()
    reported = report.running + report.waiting
    on_the_way = least_on_the_way(report, endpoint.num_unanswered, endpoint.num_in_flight)
    return room_by_report(report, max(load - reported, on_the_way), max(0, tokens - report.uncached_tokens), rules)
