"""A stream that goes on at another worker when its own dies, hangs or drains: the client sees a pause.

    worker a | first events ... --- dies ------------------------------- |
    worker b                          | resume envelope -> the rest ...  |
    client   | first events ... | (a comment every few seconds) | the rest ... |

The parts of a `MendedStream` come without a timer and without an object for each event: an IdleGuard watches the waits, `Endpoint.lose`
ends those at a worker that fell silent. Who goes on is the picker's choice among those that have not failed this stream in their present
life.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable

import aiohttp
import msgspec

from quire_contract.openai.errors import ApiError
from quire_contract.resume import PATH_RESUME
from quire_contract.router_settings import FaultSettings
from quire_contract.telemetry import log_event
from quire_router.answer import BrokenStreamError
from quire_router.attempt import Attempt
from quire_router.call import Outcome
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint, Reservation
from quire_router.idle_guard import NOT_WAITING, IdleGuard
from quire_router.picker import Picker
from quire_router.relay import Relay, Sink
from quire_router.replay import Replay
from quire_router.retry_budget import RetryBudget
from quire_router.room import room_at
from quire_router.scoring import Choice
from quire_router.upstream import BUSY_REASONS, RetryableError, Upstreams, WorkerRequest
from quire_router.worker_connection import WorkerResponse

log = logging.getLogger("quire_router.mending")

POLL_S, MAX_POLL_S = 0.05, 0.5
"""How often a stream that waits for a worker looks for one: at first, and later on. All of a worker's streams may wait at once."""
GONE_LOOKS = 10
"""How often somebody looks, POLL_S apart, whether a worker that broke a connection is gone."""
BUSY_S = 0.25
"""Until a worker that is full is asked again."""
BUSY_STATUSES = frozenset({429, 503})
KEEP_ALIVE_S = 5.0
KEEP_ALIVE = b": keep-alive\n\n"
MIGRATE = "migrate"


class Mender:
    """What all streams share. One for the process."""

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        picker: Picker,
        pool: EndpointPool,
        budget: RetryBudget,
        faults: Callable[[], FaultSettings],
        on_resume: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.upstreams = upstreams
        self.budget = budget
        self.faults = faults
        self.on_resume = on_resume
        self.clock = clock
        self._picker = picker
        self._pool = pool

    def pick(
        self, request: WorkerRequest, excluded: frozenset[str], revision: str
    ) -> tuple[Reservation | None, Choice | None]:
        """A place for a stream of that target, whose tokens mean nothing to other models; if it can be, at its own revision, and there if
        it can be at a worker with room. One that was let in once waits at a full worker rather than here: its own queue bounds that."""
        usable = [e for e in self._pool.serving(request.target) or () if e.is_usable and e.id not in excluded]
        if not usable:
            return None, None  # no decision worth keeping: it would be made again in a moment
        call, rules, now_s = request.call, self._pool.settings.admission, self.clock()
        ids = frozenset(e.id for e in usable)
        others = frozenset(e.id for e in usable if e.entry.revision != revision)
        full = frozenset(e.id for e in usable if room_at(e, rules, now_s).is_empty)
        for avoided in dict.fromkeys((others | full, others, full)):
            if avoided and avoided != ids:
                reservation, choice = self._picker.pick(
                    call.request_id, request.target, call.prompt, excluded | avoided
                )
                if reservation is not None:
                    return reservation, choice
        return self._picker.pick(call.request_id, request.target, call.prompt, excluded)

    async def are_gone(self, ids: frozenset[str]) -> bool:
        """Whether none of these workers takes requests any more. Who broke a connection is being probed: it may take a moment to tell a
        worker that died from a request that harms workers, which must not be tried at one of them again."""
        for _ in range(GONE_LOOKS):
            if not any((endpoint := self._pool.get(one)) is not None and endpoint.is_usable for one in ids):
                return True
            await asyncio.sleep(POLL_S)
        return False

    def is_same(self, endpoint: Endpoint, life: str | None) -> bool:
        """Whether the endpoint is still what it was in that life."""
        return self._pool.get(endpoint.id) is endpoint and endpoint.life == life


class MendedStream:
    """One answer that comes in parts."""

    __slots__ = (
        "_attempt",
        "_excluded",
        "_guard",
        "_mender",
        "_num_resumes",
        "_outcome",
        "_problem",
        "_request",
        "_sink",
    )

    def __init__(self, mender: Mender, request: WorkerRequest, attempt: Attempt, outcome: Outcome) -> None:
        self._mender = mender
        self._request = request
        self._attempt = attempt
        self._outcome = outcome
        self._num_resumes = 0
        self._excluded: list[tuple[Endpoint, str | None]] = []
        self._problem = ""
        self._guard = IdleGuard(mender.upstreams.timeouts.idle, self._stalled)
        self._sink: Sink | None = None

    def attach(self, sink: Sink) -> None:
        """Parts may go to `sink` while the next one is waited for."""
        self._sink = sink

    async def close(self) -> None:
        """Nobody reads on."""
        self._guard.close()
        await self._attempt.close()

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """What the client gets. BrokenStreamError where it breaks and nobody can go on: all that was given ended with a whole event.

        To a sink's owner b"" is given as well: it looks whether its client keeps up before more of the worker's answer is read.
        """
        while True:
            attempt = self._attempt
            replay = attempt.replay
            problem = ""
            yield attempt.begun.data
            try:
                while replay is None or not replay.is_over:
                    part = await self._next(attempt)
                    if part is None:
                        break
                    if part or self._sink is not None:
                        yield part
            except (aiohttp.ClientError, ConnectionError):
                self._guard.since_s = NOT_WAITING
                problem = self._why(attempt)
            problem = problem or self._problem_of_end(attempt)
            if not problem or (replay is not None and replay.has_ended(self._request.path)):
                attempt.endpoint.note_success(attempt.started_s)
                return
            async with contextlib.aclosing(self._until_resumed(problem)) as comments:
                async for comment in comments:
                    yield comment

    async def _next(self, attempt: Attempt) -> bytes | None:
        """What comes next from the worker, as far as it is for the client and has not taken the short way; b"" where the client must be
        waited for. None: nothing more comes."""
        response, cutter, replay = attempt.response, attempt.begun.cutter, attempt.replay
        if self._sink is not None and cutter is not None and isinstance(response, WorkerResponse):
            relay = Relay(response, cutter, replay, self._guard, self._sink, attempt.endpoint.latency)
            await relay.run()
            if replay is not None and replay.is_over:
                return None
            if relay.is_full:
                return b""
        now = asyncio.get_running_loop().time
        self._guard.since_s = asked_s = now()
        part = await response.content.readany()
        self._guard.since_s = NOT_WAITING
        if not part:
            return None
        attempt.endpoint.latency.note_wait(asked_s, now())
        if cutter is not None:
            part = cutter.cut(part)
            if replay is not None and part:
                part = replay.take(part)
        return part

    async def _until_resumed(self, problem: str) -> AsyncGenerator[bytes, None]:
        """Comments for the client while another worker is found; at the end it is this stream's."""
        old = self._attempt
        going_on = asyncio.create_task(self._go_on(problem))
        try:
            while not (await asyncio.wait({going_on}, timeout=KEEP_ALIVE_S))[0]:
                yield KEEP_ALIVE
            self._attempt = going_on.result()
        finally:
            if self._attempt is old:
                await _abandon(going_on)

    def _stalled(self) -> None:
        limit_s = self._mender.upstreams.timeouts.idle
        self._problem = f"sent nothing for {limit_s:g} s"
        self._attempt.response.close()

    def _why(self, attempt: Attempt) -> str:
        return "fell silent" if attempt.is_lost else self._problem or "died"

    def _problem_of_end(self, attempt: Attempt) -> str:
        """What is wrong with an answer that has ended. Nothing of one whose worker speaks of no state: that only ends."""
        cutter, replay = attempt.begun.cutter, attempt.replay
        if replay is not None and replay.is_over:
            return "drains" if replay.migrates else "died"
        if cutter is not None and not cutter.is_between_events:
            return "ended within an event"
        if replay is None or replay.state is None or replay.has_ended(self._request.path):
            return ""
        return "ended before the stream's end"

    async def _go_on(self, problem: str) -> Attempt:
        """The rest of the stream, from another worker. BrokenStreamError if there is none."""
        attempt, replay, mender = self._attempt, self._attempt.replay, self._mender
        is_migration = replay is not None and replay.migrates
        if not is_migration:
            mender.upstreams.broke(attempt)
        await attempt.close()
        broken = f"{attempt.endpoint.id} {problem}"
        request = self._rest(replay)
        if request is None or replay is None:
            raise BrokenStreamError(broken)
        self._exclude(attempt.endpoint, attempt.life or attempt.endpoint.life)
        wait_until_s = mender.clock() + mender.faults().resume_wait_s
        is_free, pause_s = is_migration, POLL_S
        while True:
            if request.call.deadline_s is not None and mender.clock() >= request.call.deadline_s:
                raise BrokenStreamError(f"{broken}, and the request's time is over")
            reservation, choice = mender.pick(request, self._out(), attempt.endpoint.entry.revision)
            if reservation is None or choice is None:
                if mender.clock() >= wait_until_s:
                    raise BrokenStreamError(f"{broken}, and no other worker could go on")
                await asyncio.sleep(pause_s)
                pause_s = min(1.5 * pause_s, MAX_POLL_S)
                continue
            if not is_free and not self._may_resume():
                raise BrokenStreamError(f"{broken}, and the stream may not go on elsewhere again")
            is_free = False
            replay.resumed()
            begun = await self._try(request, reservation, choice)
            if isinstance(begun, Attempt):
                self._note_resumed(_reason(problem), attempt.endpoint, begun)
                return begun
            request = self._rest(replay) or request
            if begun == "busy" and mender.clock() < wait_until_s:
                is_free = True
                await asyncio.sleep(BUSY_S)
            else:
                self._exclude(reservation.endpoint, reservation.endpoint.life)

    def _rest(self, replay: Replay | None) -> WorkerRequest | None:
        """The request for what the client has not got yet. None: the stream cannot go on."""
        if replay is None or not self._mender.faults().resume_streams:
            return None
        if replay.state is None and not replay.num_events:
            return msgspec.structs.replace(self._request, replay=replay)
        envelope = replay.envelope(self._request.path, self._request.body)
        if envelope is None:
            return None
        return msgspec.structs.replace(self._request, path=PATH_RESUME, body=envelope, replay=replay)

    async def _try(self, request: WorkerRequest, reservation: Reservation, choice: Choice) -> Attempt | str:
        """The rest from one worker; "busy" if it may take it later, "failed" if not."""
        try:
            begun = await self._mender.upstreams.begin(request, reservation, choice)
        except RetryableError as error:
            self._log_failed(reservation, str(error))
            return "busy" if error.reason in BUSY_REASONS else "failed"
        except ApiError as error:
            self._log_failed(reservation, error.message)
            return "failed"
        if begun.begun.cutter is not None and begun.response.status == 200:
            return begun
        await begun.close()
        self._log_failed(reservation, f"answered with {begun.response.status}")
        return "busy" if begun.response.status in BUSY_STATUSES else "failed"

    def _may_resume(self) -> bool:
        self._num_resumes += 1
        return self._num_resumes <= self._mender.faults().max_resumes and self._mender.budget.take()

    def _exclude(self, endpoint: Endpoint, life: str | None) -> None:
        self._excluded = [known for known in self._excluded if self._mender.is_same(*known)]
        self._excluded.append((endpoint, life))

    def _out(self) -> frozenset[str]:
        return frozenset(endpoint.id for endpoint, life in self._excluded if self._mender.is_same(endpoint, life))

    def _note_resumed(self, reason: str, old: Endpoint, attempt: Attempt) -> None:
        new, self._problem = attempt.endpoint, ""
        self._outcome.resumes += 1
        self._outcome.choice = attempt.choice
        self._mender.on_resume(reason)
        request_id = self._request.call.request_id
        log_event(log, logging.INFO, "resumed", request_id=request_id, reason=reason, left=old.id, endpoint=new.id)

    def _log_failed(self, reservation: Reservation, problem: str) -> None:
        log_event(
            log,
            logging.INFO,
            "resume_failed",
            request_id=self._request.call.request_id,
            endpoint=reservation.endpoint.id,
            problem=problem,
        )


_REASONS = (("fell silent", "lost"), ("ended", "cut"), ("sent nothing", "stalled"), ("drains", MIGRATE))


def _reason(problem: str) -> str:
    """The problem as a metric's label."""
    return next((reason for words, reason in _REASONS if problem.startswith(words)), "died")


async def _abandon(task: asyncio.Task[Attempt]) -> None:
    """The client left meanwhile, or nobody goes on: the task ends, and what it got is closed."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled() and task.exception() is None:
        await task.result().close()
