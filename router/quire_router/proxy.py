"""Carries one request to a worker and its answer back: original bytes, whole SSE events as they come, retries before the first byte.

    connect -> (retry) -> headers -> (retry) -> first event -> the answer begins -> ... -> end | BrokenStreamError

A retry goes to another endpoint, only while nothing was sent to the client, at most MAX_RETRIES times and within the retry budget.
A call by a route's name has several models that may answer; each is sent the body with its own name in "model", and an answer tells the
name of the model that gave it. It must not know how endpoints are chosen or what bodies mean beyond that.
"""

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncGenerator, Callable

import aiohttp
import msgspec
from yarl import URL

from quire_contract import names
from quire_contract.openai.errors import ApiError, unavailable
from quire_contract.telemetry import log_event
from quire_contract.trust import Trust
from quire_router import headers as header_rules
from quire_router.answer import Answer, BrokenStreamError
from quire_router.call import Call, Outcome
from quire_router.endpoints import Endpoint, Reservation
from quire_router.picker import Picker
from quire_router.retry_budget import RetryBudget
from quire_router.scoring import Choice
from quire_router.splitting import with_model
from quire_router.sse import EventCutter

log = logging.getLogger("quire_router.proxy")

MAX_RETRIES = 2
MAX_HELD_BYTES = 1024 * 1024
"""An answer that is no stream is read whole before a byte is sent on, up to this size, so that a worker's death can still be mended."""
RETRYABLE_STATUS = 503
MAX_URLS = 4096
MAX_SENT_AT_ONCE_BYTES = 1024 * 1024
"""Larger bodies are sent in parts, so that they do not hold up the event loop."""


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """All in seconds. The connect timeout is the session's."""

    first_byte: float
    """Until a stream's first event."""
    answer: float
    """Until the whole of an answer that is not streamed."""
    idle: float
    """Between two parts of a stream that has begun, and for a client to take what was sent to it."""


class RetryableError(Exception):
    """This attempt failed before anything was sent to the client."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Proxy:
    """Forwards calls. One for the process; the source behind all layers."""

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        picker: Picker,
        budget: RetryBudget,
        timeouts: Timeouts,
        trust: Trust | None,
        on_retry: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._picker = picker
        self._budget = budget
        self._timeouts = timeouts
        self._trust = trust
        self._on_retry = on_retry
        self._clock = clock
        self._urls: dict[tuple[str, str], URL] = {}

    async def answer(self, call: Call, outcome: Outcome) -> Answer:
        """A worker's answer. ApiError if no endpoint gave one."""
        tried: frozenset[str] = frozenset()
        self._budget.note_request()
        while True:
            reservation, choice = self._pick(call, tried, outcome)
            if reservation is None:
                if tried:
                    raise unavailable(f"{outcome.problem}; {choice.reason}")
                outcome.choice = choice
                raise unavailable(
                    f"The model `{call.model}` has no ready worker now: {choice.reason}.", retry_after_s=1
                )
            outcome.choice = choice
            outcome.attempts += 1
            try:
                return await self._attempt(call, reservation, outcome)
            except RetryableError as error:
                outcome.problem = str(error)
                tried |= {reservation.endpoint.id}
                if outcome.attempts > MAX_RETRIES or not self._budget.take():
                    raise unavailable(f"No worker could answer: {error}.") from None
                self._on_retry(error.reason)
                log_event(
                    log,
                    logging.INFO,
                    "retry",
                    request_id=call.request_id,
                    endpoint=reservation.endpoint.id,
                    reason=error.reason,
                )

    def _pick(self, call: Call, tried: frozenset[str], outcome: Outcome) -> tuple[Reservation | None, Choice]:
        """A place at the first target that has one; if none has, why not the first target."""
        refusal: Choice | None = None
        for target in call.targets:
            reservation, choice = self._picker.pick(call.request_id, target, call.prompt, tried)
            if reservation is not None:
                outcome.target = target
                return reservation, choice
            refusal = refusal or choice
        assert refusal is not None, "a call has a target"
        return None, refusal

    async def _attempt(self, call: Call, reservation: Reservation, outcome: Outcome) -> Answer:
        """One endpoint's answer. RetryableError: another endpoint may be tried. The place is held until the answer is closed."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(reservation)
            upstream, begun = await self._begin(call, reservation.endpoint, outcome, stack)
            outcome.first_byte_s = now_s = self._clock()
            is_stream = begun.cutter is not None
            reservation.first_byte(now_s, is_stream=is_stream)
            ttft_s = now_s - reservation.started_s if is_stream else None
            reservation.endpoint.counts.answered(upstream.status, ttft_s)
            return self._answer_of(call, reservation.endpoint, upstream, begun, outcome, stack)

    async def _begin(
        self, call: Call, endpoint: Endpoint, outcome: Outcome, stack: contextlib.AsyncExitStack
    ) -> tuple[aiohttp.ClientResponse, "Begun"]:
        limit_s = (call.first_byte_timeout_s or self._timeouts.first_byte) if call.is_stream else self._timeouts.answer
        try:
            async with asyncio.timeout(limit_s):
                upstream = await self._open(call, outcome.target or call.model, endpoint)
                stack.callback(upstream.close)  # nothing to close if all of it was read: its connection went back then
                return upstream, await _begin(endpoint, upstream)
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
            endpoint.counts.failed()
            raise _failure(endpoint, error, limit_s) from None

    async def _open(self, call: Call, target: str, endpoint: Endpoint) -> aiohttp.ClientResponse:
        key = (endpoint.url, call.path)
        url = self._urls.get(key)
        if url is None:
            if len(self._urls) >= MAX_URLS:
                self._urls.clear()
            url = self._urls[key] = URL(endpoint.url + call.path)
        passed = header_rules.to_worker(
            call.headers, call.request_id, self._trust, keep_key=call.keep_key, cache_salt=call.cache_salt
        )
        body = call.body if target == call.model else with_model(call.body, target)
        data = body if len(body) <= MAX_SENT_AT_ONCE_BYTES else io.BytesIO(body)
        return await self._session.post(url, data=data, headers=passed, allow_redirects=False)

    def _answer_of(
        self,
        call: Call,
        endpoint: Endpoint,
        upstream: aiohttp.ClientResponse,
        begun: "Begun",
        outcome: Outcome,
        stack: contextlib.AsyncExitStack,
    ) -> Answer:
        assert outcome.choice is not None, "an attempt has been chosen"
        passed = header_rules.to_client(upstream.headers, call.request_id, endpoint.id, route_in_short(outcome.choice))
        if begun.is_whole:
            return Answer(status=upstream.status, headers=passed, body=begun.data)
        return Answer(
            status=upstream.status,
            headers=passed,
            parts=self._parts(endpoint, upstream, begun),
            is_events=begun.cutter is not None,
            release=stack.pop_all().aclose,
        )

    async def _parts(
        self, endpoint: Endpoint, upstream: aiohttp.ClientResponse, begun: "Begun"
    ) -> AsyncGenerator[bytes, None]:
        """What comes until the stream's end. BrokenStreamError where it breaks: all that was given ended with a whole event.

        This is the place where a stream will go on at another worker."""
        try:
            yield begun.data
            async for part in self._rest(upstream, begun.cutter):
                yield part
        except BrokenStreamError as error:
            endpoint.counts.broke()
            endpoint.on_suspect()
            raise BrokenStreamError(f"{endpoint.id} {error}") from None

    async def _rest(self, upstream: aiohttp.ClientResponse, cutter: EventCutter | None) -> AsyncGenerator[bytes, None]:
        idle_s = self._timeouts.idle
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    arrived = await upstream.content.readany()
            except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
                stalled = isinstance(error, TimeoutError)
                raise BrokenStreamError(f"sent nothing for {idle_s:g} s" if stalled else "died") from None
            if not arrived:
                break
            part = arrived if cutter is None else cutter.cut(arrived)
            if part:
                yield part
        if cutter is not None and not cutter.is_between_events:
            raise BrokenStreamError("ended within an event")


class Begun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The beginning of an answer, at a point where a byte may go to the client."""

    data: bytes
    is_whole: bool
    cutter: EventCutter | None
    """None: not a stream of events."""


async def _begin(endpoint: Endpoint, upstream: aiohttp.ClientResponse) -> Begun:
    """Read a stream's first events, or an answer that is no stream whole if it is not too large."""
    reason = upstream.headers.get(names.HEADER_REASON, "")
    if upstream.status == RETRYABLE_STATUS and reason != names.REASON_QUEUE_TIMEOUT:  # that one has waited long enough
        if reason == names.REASON_DRAINING:
            endpoint.mark_draining()
        else:
            endpoint.counts.failed()
            endpoint.on_suspect()
        raise RetryableError(reason or "unavailable", f"{endpoint.id} is {reason or 'unavailable'}")
    content = upstream.content
    if not upstream.headers.get("Content-Type", "").startswith("text/event-stream"):
        return await _begin_whole(content)
    cutter = EventCutter()
    while True:
        arrived = await content.readany()
        if not arrived:
            endpoint.counts.failed()
            raise RetryableError("reset", f"{endpoint.id} ended the stream before its first event")
        events = cutter.cut(arrived)
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


def _failure(endpoint: Endpoint, error: Exception, limit_s: float) -> Exception:
    """What an attempt's error means: another endpoint may be tried, or the time is over."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        endpoint.mark_down(f"cannot be connected to ({type(error).__name__})")
        return RetryableError("connect", f"{endpoint.id} cannot be connected to")
    endpoint.on_suspect()
    if isinstance(error, TimeoutError):
        return ApiError(
            504,
            f"Worker {endpoint.id} did not answer within {limit_s:g} s.",
            type="server_error",
            code="worker_timeout",
        )
    return RetryableError("reset", f"{endpoint.id} closed the connection before it answered")


def route_in_short(choice: Choice) -> str:
    """The choice as a header's value."""
    return f"{choice.level}; cached={choice.matched_tokens}/{choice.num_tokens or 0}"
