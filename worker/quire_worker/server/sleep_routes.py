"""POST /internal/sleep and /internal/wake: the worker's memory is given back, and taken again."""

import msgspec
from aiohttp import web

from quire_contract.openai.errors import CODE_INVALID_VALUE, TYPE_INVALID, ApiError
from quire_contract.startup_report import SleepAnswer
from quire_worker.server.access import Access
from quire_worker.server.sleeping import Sleeping

MAX_WAIT_S = 3600.0


class SleepRoutes:
    """Handlers for the operator."""

    def __init__(self, sleeping: Sleeping, access: Access) -> None:
        self._sleeping = sleeping
        self._access = access

    async def sleep(self, request: web.Request) -> web.Response:
        """?wait=SECONDS: how long running requests may take to end [0]; 409 if they have not. Answers when it is done."""
        self._check(request)
        return _answer(await self._sleeping.sleep(_wait_s(request)))

    async def wake(self, request: web.Request) -> web.Response:
        """Answers when requests are taken again; 503 if the device has no room."""
        self._check(request)
        return _answer(await self._sleeping.wake())

    def _check(self, request: web.Request) -> None:
        if not self._access.may_control(request.remote):
            message = "Without --trust-dir only this machine may put this worker to sleep or wake it."
            raise ApiError(403, message, type=TYPE_INVALID, code="forbidden")


def _wait_s(request: web.Request) -> float:
    text = request.query.get("wait", "0")
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= MAX_WAIT_S:
        message = f"wait must be a number of seconds from 0 to {MAX_WAIT_S:.0f}, got {text[:40]!r}."
        raise ApiError(400, message, type=TYPE_INVALID, param="wait", code=CODE_INVALID_VALUE)
    return wait_s


def _answer(answer: SleepAnswer) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
