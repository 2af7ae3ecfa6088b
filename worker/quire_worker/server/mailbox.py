"""Where the engine's answers to one HTTP request arrive.

A plain list and one waiter, because a step brings tokens of many choices and their reader should wake once for all of them.
"""

import asyncio
from typing import NamedTuple

from quire_worker.engine.messages import ChoiceOutput, Rejected

Item = ChoiceOutput | Rejected


class Mail(NamedTuple):
    """An item and when it arrived, in seconds of the engine client's clock."""

    arrived_s: float
    item: Item


class Mailbox:
    """Filled by the engine client, emptied by one reader, both on the event loop."""

    def __init__(self) -> None:
        self._mails: list[Mail] = []
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, mail: Mail) -> None:
        self._mails.append(mail)
        self._wake()

    def fail(self, error: Exception) -> None:
        """Nothing more will come: `take` raises `error` once what came before is taken."""
        self._failure = error
        self._wake()

    async def take(self) -> list[Mail]:
        """Everything that has arrived, at least one mail. Waits; raises what `fail` was given."""
        while not self._mails:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        mails, self._mails = self._mails, []
        return mails

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
