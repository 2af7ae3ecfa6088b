"""Asks one worker's process to sleep and to wake. This module must not know why, or what else becomes of the process."""

import asyncio
from typing import Any

import aiohttp

from quire_contract import names

MAX_WAKES = 3
"""A process that refuses so often is not asked again: a fresh one takes its place."""
AGAIN_S = 1.0
"""Between two tries."""
_WAIT_S = 20
"""How long running requests may end first, before it is asked anew."""
_TIMEOUT = aiohttp.ClientTimeout(total=180.0, connect=3.0)
"""A device's memory may take a while."""
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError)


class Rest:
    """Of one pod."""

    def __init__(self, url: str, token: str, http: aiohttp.ClientSession, again_s: float = AGAIN_S) -> None:
        """`url`: http://HOST:PORT of the worker."""
        self._again_s = again_s
        self._url = url
        self._headers = {names.HEADER_TOKEN: token}
        self._http = http
        self._is_wanted = self._was_wanted = False
        self._turned = asyncio.Event()
        self._asked: asyncio.Task[bool] | None = None
        """A sleep that was asked for and is not wanted any more."""

    @property
    def is_wanted(self) -> bool:
        """Whether it is meant to sleep."""
        return self._is_wanted

    def want(self, is_wanted: bool) -> None:
        """From now on."""
        self._is_wanted = is_wanted
        self._was_wanted |= is_wanted
        self._turned.set()

    async def until_wanted(self, is_wanted: bool) -> None:
        """Until it is meant to sleep, or to be awake."""
        while self._is_wanted != is_wanted:
            self._turned.clear()
            await self._turned.wait()

    async def until_asleep(self) -> None:
        """Until it was put to sleep, once that is wanted, be it for a moment; or is to be awake again, and may have fallen asleep."""
        while not (self._was_wanted or self._is_wanted):
            self._turned.clear()
            await self._turned.wait()
        self._was_wanted = False
        turning = asyncio.create_task(self.until_wanted(False))
        try:
            while not turning.done():
                asking = self._asked = asyncio.create_task(self._ask(f"{names.PATH_SLEEP}?wait={_WAIT_S}"))
                await asyncio.wait({asking, turning}, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    return  # the worker may hear of it yet: `wake` waits for what becomes of it
                if asking.result():
                    return
                await asyncio.wait({turning}, timeout=self._again_s)
        except asyncio.CancelledError:
            await self._forget_asked()
            raise
        finally:
            await _cancelled(turning)

    async def wake(self) -> bool:
        """False: it does not. A sleep that was asked for is answered first: taken back, it could still come about after the wake."""
        try:
            while self._asked is not None and not self._asked.done():
                await self._ask(names.PATH_WAKE)  # ends the sleep's wait for running requests
                await asyncio.wait({self._asked}, timeout=self._again_s)
        finally:
            await self._forget_asked()
        for attempt in range(MAX_WAKES):
            if attempt:
                await asyncio.sleep(self._again_s)
            if await self._ask(names.PATH_WAKE):
                return True
        return False

    async def _forget_asked(self) -> None:
        if self._asked is not None:
            await _cancelled(self._asked)
            self._asked = None

    async def _ask(self, path: str) -> bool:
        try:
            async with self._http.post(self._url + path, headers=self._headers, timeout=_TIMEOUT) as answer:
                return answer.status == 200
        except _NO_ANSWER:
            return False


async def _cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
