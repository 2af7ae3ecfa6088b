"""One attempt at one worker: the request is sent, and its answer read up to a point where a byte may go to the client.

    connect -> headers -> first event | the whole of what is no stream

What an attempt tells of the worker (it is down, drains, keeps failing) is noted here. It must not know how endpoints are chosen, nor what
becomes of a failed attempt.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec

from quire_contract import names
from quire_contract.openai.errors import CODE_QUEUE_TIMEOUT, ApiError, deadline_exceeded
from quire_contract.router_settings import FaultSettings
from quire_contract.telemetry import log_event
from quire_contract.trust import Trust
from quire_router import headers as header_rules
from quire_router.attempt import Attempt, Begun, Response
from quire_router.call import Call, Usage
from quire_router.endpoints import Endpoint, Reservation
from quire_router.replay import Replay
from quire_router.request_heads import RequestHeads
from quire_router.scoring import Choice
from quire_router.splitting import with_model
from quire_router.sse import EventCutter
from quire_router.time_limit import TimeLimit, TimeLimits
from quire_router.turn import Turn
from quire_router.worker_client import MAX_SENT_AT_ONCE_BYTES, WorkerClient
from quire_router.worker_connection import WorkerResponse

log = logging.getLogger("quire_router.upstream")

MAX_HELD_BYTES = 1024 * 1024
"""An answer that is no stream is read whole before a byte is sent on, up to this size, so that a worker's death can still be mended."""
RETRYABLE_STATUS = 503
BUSY_REASONS = frozenset({names.REASON_QUEUE_FULL, names.REASON_NOT_READY, names.REASON_DRAINING, names.REASON_ASLEEP})
"""A worker that says so is well."""
NOT_ITS_FAULT = BUSY_REASONS | {names.REASON_QUEUE_TIMEOUT, names.REASON_DEADLINE, CODE_QUEUE_TIMEOUT}


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """All in seconds. The connect timeout is the session's."""

    first_byte: float
    """Until a stream's first event, at one worker; what came before (the router's queue, other workers) is not counted."""
    answer: float
    """Until the whole of an answer that is not streamed, at one worker."""
    idle: float
    """Between two parts of a stream that has begun, and for a client to take what was sent to it."""


class RetryableError(Exception):
    """This attempt failed before anything was sent to the client."""

    def __init__(self, reason: str, message: str, *, also_tried: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.reason = reason
        self.also_tried = also_tried


class WorkerRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is sent to a worker."""

    call: Call
    target: str
    """The model that it shall use."""
    path: str
    body: bytes
    replay: Replay | None = None
    """Of the stream that goes on with this request; None: a request of its own."""


class Upstreams:
    """Makes attempts. One for the process."""

    def __init__(
        self,
        *,
        client: WorkerClient,
        timeouts: Timeouts,
        trust: Trust | None,
        faults: Callable[[], FaultSettings],
        on_ejection: Callable[[], None],
        clock: Callable[[], float],
        parts: Any = None,
    ) -> None:
        """`parts`: the extension module (`native`), if it is to be used."""
        self.timeouts = timeouts
        self._client = client
        self._trust = trust
        self._heads = RequestHeads(trust, parts)
        self._take_events = None if parts is None else parts.take_events
        self._faults = faults
        self._on_ejection = on_ejection
        self._clock = clock
        self._limits = TimeLimits()
        self._loop = asyncio.get_running_loop()

    async def begin(self, request: WorkerRequest, reservation: Reservation, choice: Choice) -> Attempt:
        """The beginning of an endpoint's answer. Whole: its place is free again. RetryableError: another endpoint may be tried;
        ApiError: the time is over."""
        call = request.call
        limit_s = self._limit_s(call)
        reservation.take()
        attempt = Attempt(reservation, choice, request.replay, is_asked=self._trust is not None)
        is_read = False
        try:
            try:
                head = None if call.is_stream or call.deadline_s is not None else self._ask(attempt, request, limit_s)
                if head is None:
                    await self._begin(attempt, request, limit_s)
                else:
                    attempt.response = response = await head
                    over_s = attempt.waiting.pop(attempt, 0.0)
                    if response.whole is not None and response.status != RETRYABLE_STATUS:
                        attempt.life, is_read = attempt.endpoint.life, True
                        attempt.begun = Begun(data=response.whole, is_whole=True, cutter=None)
                    else:
                        await self._read_on(attempt, over_s)
            except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
                raise self._failure(call, attempt, error, limit_s) from None
            except RetryableError as error:
                self._refused(reservation, error.reason)
                raise
            self._note_begun(call, attempt, reservation, is_new=request.replay is None)
            if is_read:  # there is nothing to close
                attempt.give_back()
            elif attempt.begun.is_whole:
                attempt.end()
        except BaseException:
            attempt.end()
            raise
        return attempt

    def _ask(self, attempt: Attempt, request: WorkerRequest, limit_s: float) -> Turn[WorkerResponse] | None:
        """Send a request that has no deadline over a connection that is free, and have its time begin. Where the answer's head is waited
        for; None: nothing was sent."""
        body = request.body
        if len(body) > MAX_SENT_AT_ONCE_BYTES:
            return None
        target = self._client.target(attempt.endpoint.url, request.path)
        sent = self._heads.request(target.line, request.call, body, 0.0)
        connection = target.place.take()
        if connection is None:
            return None
        waiting = self._limits.join(attempt, limit_s)
        if waiting is None:
            target.place.take_back(connection)
            return None
        attempt.connection, attempt.waiting = connection, waiting
        attempt.head = head = connection.ask(sent)
        return head

    async def _begin(self, attempt: Attempt, request: WorkerRequest, limit_s: float) -> None:
        """Send a request of any kind, and read the beginning of its answer."""
        with self._limits.of(limit_s) if request.call.deadline_s is None else TimeLimit(limit_s) as limit:
            attempt.on_lost = limit.end_now
            attempt.response = await self._send(attempt.endpoint, request)
            await self._read(attempt)

    async def _read_on(self, attempt: Attempt, over_s: float) -> None:
        """Read the beginning of an answer whose head has come, until then by the event loop's clock."""
        with TimeLimit(max(0.0, over_s - self._loop.time())) as limit:
            attempt.on_lost = limit.end_now
            await self._read(attempt)

    async def _read(self, attempt: Attempt) -> None:
        endpoint = attempt.endpoint
        attempt.life = endpoint.life
        if attempt.replay is None and attempt.is_asked:
            attempt.replay = Replay(Usage(), self._take_events)
        attempt.begun = _begun_whole(attempt.response) or await _begin(endpoint, attempt.response, attempt.replay)

    def _send(self, endpoint: Endpoint, request: WorkerRequest) -> Awaitable[Response]:
        call, body, now_s = request.call, request.body, self._clock()
        target = self._client.target(endpoint.url, request.path)
        if len(body) > MAX_SENT_AT_ONCE_BYTES:
            return self._client.post(target, body, header_rules.of_call(call, self._trust, now_s))
        return self._client.send(target, self._heads.request(target.line, call, body, now_s))

    def broke(self, attempt: Attempt) -> None:
        """An answer that had begun did not end as it should."""
        attempt.endpoint.counts.broke()
        attempt.endpoint.on_suspect()
        self._note_failure(attempt.endpoint, attempt.started_s)

    def _limit_s(self, call: Call) -> float:
        limit_s = (call.first_byte_timeout_s or self.timeouts.first_byte) if call.is_stream else self.timeouts.answer
        if call.deadline_s is None:
            return limit_s
        left_s = call.deadline_s - self._clock()
        if left_s <= 0:
            raise _deadline_passed()
        return min(limit_s, left_s)

    def _note_begun(self, call: Call, attempt: Attempt, reservation: Reservation, *, is_new: bool) -> None:
        endpoint, response, begun = attempt.endpoint, attempt.response, attempt.begun
        status, ttft_s = response.status, None
        if not begun.is_whole:
            now_s, is_new_stream = self._clock(), begun.cutter is not None and is_new
            reservation.first_byte(now_s, is_stream=is_new_stream)
            if is_new_stream:
                ttft_s = now_s - reservation.started_s
                if status < 400:
                    endpoint.latency.ttft.note(now_s - call.arrived_s, now_s)
            attempt.on_lost = response.close
        endpoint.counts.answered(status, ttft_s)
        if status >= 500:
            if response.headers.get(names.HEADER_REASON, "") not in NOT_ITS_FAULT:
                self._note_failure(endpoint, reservation.started_s)
        elif begun.is_whole or endpoint.trial is reservation:
            endpoint.note_success(reservation.started_s)

    def _refused(self, reservation: Reservation, reason: str) -> None:
        endpoint = reservation.endpoint
        if reason == names.REASON_DRAINING:
            endpoint.mark_draining()
            return
        endpoint.counts.failed()
        endpoint.on_suspect()
        if reason not in NOT_ITS_FAULT:
            self._note_failure(endpoint, reservation.started_s)

    def _failure(self, call: Call, attempt: Attempt, error: Exception, limit_s: float) -> ApiError | RetryableError:
        """What an attempt's error means: another endpoint may be tried, or the time is over."""
        endpoint = attempt.endpoint
        is_late = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
        if is_late and not attempt.is_lost and call.deadline_s is not None and self._clock() >= call.deadline_s:
            return _deadline_passed()
        endpoint.counts.failed()
        self._note_failure(endpoint, attempt.started_s)
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            endpoint.mark_down(f"cannot be connected to ({type(error).__name__})")
            return RetryableError("connect", f"{endpoint.id} cannot be connected to")
        endpoint.on_suspect()
        if attempt.is_lost:
            return RetryableError("lost", f"{endpoint.id} fell silent")
        if is_late:
            return ApiError(
                504,
                f"Worker {endpoint.id} did not answer within {limit_s:g} s.",
                type="server_error",
                code="worker_timeout",
            )
        return RetryableError("reset", f"{endpoint.id} closed the connection before it answered")

    def _note_failure(self, endpoint: Endpoint, started_s: float) -> None:
        now_s = self._clock()
        if endpoint.note_failure(started_s, now_s, self._faults()):
            self._on_ejection()
            out_s = round(endpoint.health.until_s - now_s, 1)
            log_event(log, logging.WARNING, "ejected", endpoint=endpoint.id, for_s=out_s)


def request_of(call: Call, target: str) -> WorkerRequest:
    """The call as a worker of `target` gets it. ApiError 400 if its body cannot be given that model's name."""
    body = call.body if target == call.model else with_model(call.body, target)
    return WorkerRequest(call=call, target=target, path=call.path, body=body)


def _begun_whole(response: Response) -> Begun | None:
    """An answer of which all is there, and which is an answer. None: it is to be looked at."""
    if type(response) is not WorkerResponse or response.whole is None or response.status == RETRYABLE_STATUS:
        return None
    return Begun(data=response.whole, is_whole=True, cutter=None)


async def _begin(endpoint: Endpoint, response: Response, replay: Replay | None) -> Begun:
    """Read a stream's first events, or an answer that is no stream whole if it is not too large."""
    reason = response.headers.get(names.HEADER_REASON, "")
    if response.status == RETRYABLE_STATUS and reason != names.REASON_QUEUE_TIMEOUT:  # that one has waited long enough
        raise RetryableError(reason or "unavailable", f"{endpoint.id} is {reason or 'unavailable'}")
    content = response.content
    if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
        return await _begin_whole(content)
    cutter = EventCutter()
    while True:
        arrived = await content.readany()
        if not arrived:
            raise RetryableError("reset", f"{endpoint.id} ended the stream before its first event")
        events = cutter.cut(arrived)
        if events and replay is not None:
            events = replay.take(events)
            if replay.is_over and not events:
                reason = names.REASON_DRAINING if replay.migrates else "reset"
                raise RetryableError(reason, f"{endpoint.id} ended the stream before its first event")
        if events:
            return Begun(data=events, is_whole=False, cutter=cutter)


async def _begin_whole(content: aiohttp.StreamReader) -> Begun:
    first = await content.readany()
    if content.at_eof() or not first:
        return Begun(data=first, is_whole=True, cutter=None)
    parts, size = [first], len(first)
    while size < MAX_HELD_BYTES:
        arrived = await content.readany()
        if not arrived:
            return Begun(data=b"".join(parts), is_whole=True, cutter=None)
        parts.append(arrived)
        size += len(arrived)
    return Begun(data=b"".join(parts), is_whole=False, cutter=None)


def _deadline_passed() -> ApiError:
    error = deadline_exceeded("The request's time was over before its answer began.")
    error.headers[names.HEADER_REASON] = names.REASON_DEADLINE
    return error
