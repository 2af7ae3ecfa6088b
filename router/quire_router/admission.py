"""The layer that lets a call to the workers when there is room for it: at once, or after it has waited in its line (`waiting_room`).

A stream that waits longer than `comment_s` gets its status and a comment line (`: waiting`), which clients ignore, and more of them as time
goes on; what goes wrong after that is an error event in the form of the client's API. Anything else waits without a byte.
"""

import contextlib
from collections.abc import AsyncGenerator, Callable

import msgspec
from multidict import CIMultiDict

from quire_contract.error_form import broken_stream, request_id_headers
from quire_contract.openai.errors import TYPE_SERVER, ApiError
from quire_router.answer import Answer, LateRefusalError, Source
from quire_router.call import Call, Outcome, Usage
from quire_router.line import Waiter
from quire_router.precheck import check_body
from quire_router.refusals import NobodyLeftError
from quire_router.waiting_room import WaitingRoom

MAX_RETURNS = 3
"""So often a request waits again whose worker left before it answered, with nobody else to ask: scaled to zero, or dead."""
COMMENT = b": waiting\n\n"
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
"""As a worker's streams have them."""


class AdmissionLayer:
    """One for the process."""

    def __init__(self, room: WaitingRoom, clock: Callable[[], float]) -> None:
        self._room = room
        self._clock = clock

    async def answer(self, call: Call, outcome: Outcome, inner: Source) -> Answer:
        """The inner answer, once a worker may take the call. ApiError if none could in time, or if too many wait."""
        fields = call.fields
        if call.tenant is not None or (fields is not None and fields.timeout_s is not None):
            call = ranked(call)
        target = self._room.pass_at_once(call)
        if target is not None:
            try:
                if call.route is None:  # as `_begin`, but no step of its own each time that the call goes on
                    return await inner(call if target == call.targets[0] else aimed(call, target), outcome)
                return await self._begin(call, target, outcome, inner)
            except NobodyLeftError:
                if not self._room.may_hold(call):
                    raise
            return await self._hold(call, outcome, inner, num_returns=1)
        if not self._room.may_hold(call):
            return await inner(call, outcome)  # it knows best why nobody can answer
        if self._room.is_asleep(call):
            await check_body(call)
        return await self._hold(call, outcome, inner, num_returns=0)

    async def _hold(self, call: Call, outcome: Outcome, inner: Source, num_returns: int) -> Answer:
        """The answer after a wait, and after another one if the worker that it was meant for has left meanwhile."""
        waiter = self._room.join(call, is_back=num_returns > 0)
        try:
            comment_s = self._room.comment_s if call.is_stream else 0.0
            until_s = self._clock() + comment_s if comment_s > 0 else None
            target = await self._room.wait(waiter, until_s)
        except BaseException:
            self._room.leave(waiter)
            raise
        if target is None:
            return self._telling(call, outcome, inner, waiter, comment_s)
        outcome.waited_s += self._room.started(waiter)
        try:
            return await self._begin(call, target, outcome, inner)
        except NobodyLeftError:
            if num_returns == MAX_RETURNS or not self._room.may_hold(call):
                raise
        return await self._hold(call, outcome, inner, num_returns + 1)

    async def _begin(self, call: Call, target: str, outcome: Outcome, inner: Source) -> Answer:
        if call.route is None or target == call.route.meant:
            return await inner(aimed(call, target), outcome)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._room.elsewhere(call, target))
            answer = await inner(aimed(call, target), outcome)
            if answer.parts is None:
                return answer
            ends = stack.pop_all()

        async def close() -> None:
            ends.close()
            await answer.close()

        return Answer(
            status=answer.status,
            headers=answer.headers,
            parts=answer.parts,
            is_events=answer.is_events,
            release=close,
            attach=answer.attach,
        )

    def _telling(self, call: Call, outcome: Outcome, inner: Source, waiter: Waiter, comment_s: float) -> Answer:
        """A stream that begins before its worker is known."""
        headers = CIMultiDict(STREAM_HEADERS)
        headers.update(request_id_headers(call.path, call.request_id))

        async def leave() -> None:
            self._room.leave(waiter)

        parts = self._parts(call, outcome, inner, waiter, comment_s)
        answer = Answer(status=200, headers=headers, parts=parts, is_events=True, release=leave)
        answer.is_provisional = call.has_other_models
        return answer

    async def _parts(
        self, call: Call, outcome: Outcome, inner: Source, waiter: Waiter, comment_s: float
    ) -> AsyncGenerator[bytes, None]:
        answer, num_returns = None, 0
        try:
            yield COMMENT
            while answer is None:
                while (target := await self._room.wait(waiter, self._clock() + comment_s)) is None:
                    yield COMMENT
                outcome.waited_s += self._room.started(waiter)
                try:
                    answer = await self._begin(call, target, outcome, inner)
                except NobodyLeftError:
                    if num_returns == MAX_RETURNS or not self._room.may_hold(call):
                        raise
                    num_returns += 1
                    waiter = self._room.join(call, is_back=True)
        except ApiError as error:
            yield refused_late(call, outcome, error, Usage())
            return
        finally:
            self._room.leave(waiter)
        try:
            if answer.parts is not None and answer.is_events:
                outcome.status = answer.status
                async for part in answer.parts:
                    yield part
            else:
                yield refused_late(call, outcome, error_of(answer), outcome.usage or Usage())
        finally:
            await answer.close()


def refused_late(call: Call, outcome: Outcome, error: ApiError, used: Usage) -> bytes:
    """The event that tells of it. LateRefusalError if another model may be tried."""
    outcome.problem = outcome.problem or error.message
    if call.has_other_models:
        raise LateRefusalError(error)
    outcome.late_status = outcome.status = error.status
    outcome.usage = used
    return broken_stream(error, call.path, call.request_id, 0)


def ranked(call: Call) -> Call:
    """With its tenant's priority, and the time that its client gives it."""
    tenant, fields = call.tenant, call.fields
    priority = call.priority if tenant is None else tenant.entry.priority
    deadline_s = call.deadline_s
    if deadline_s is None and fields is not None and fields.timeout_s is not None and fields.timeout_s > 0:
        deadline_s = call.arrived_s + fields.timeout_s
    if priority == call.priority and deadline_s is call.deadline_s:
        return call
    return msgspec.structs.replace(call, priority=priority, deadline_s=deadline_s)


def aimed(call: Call, target: str) -> Call:
    """With `target` as the first of those that are tried."""
    if call.targets[0] == target:
        return call
    others = tuple(other for other in call.targets if other != target)
    return msgspec.structs.replace(call, targets=(target, *others))


class _Detail(msgspec.Struct, frozen=True):
    message: str = ""
    type: str = TYPE_SERVER
    code: str | None = None
    param: str | None = None


class _Body(msgspec.Struct, frozen=True):
    error: _Detail = _Detail()


def error_of(answer: Answer) -> ApiError:
    """What a whole answer says, to be told within a stream: a worker's refusal, in whichever API's form."""
    try:
        detail = msgspec.json.decode(answer.body or b"", type=_Body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        detail = _Detail()
    status = answer.status if answer.status >= 400 else 502
    message = detail.message or f"The worker answered with status {answer.status} instead of a stream."
    return ApiError(status, message, type=detail.type, code=detail.code, param=detail.param)
