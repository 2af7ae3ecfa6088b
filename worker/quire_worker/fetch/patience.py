"""Trying again while a source has trouble, with growing waits, until it has had trouble for too long.

Any byte received ends the trouble. This module must not know what is tried.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp

from quire_contract.telemetry import log_event
from quire_worker.fetch.errors import FetchError, InterruptedFetchError, Reason, TransientError

log = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_WAIT_S = 0.5
_MAX_WAIT_S = 30.0
_MAX_RETRY_AFTER_S = 60.0
_CERTIFICATES = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)


class Patience:
    """How long trouble is borne."""

    def __init__(
        self,
        *,
        window_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        rng: random.Random,
        on_trouble: Callable[[str], None],
    ) -> None:
        """`window_s`: of trouble in a row. `on_trouble` is told what is wrong, for people who wait, and "" when it is over."""
        self._window_s = window_s
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        self._on_trouble = on_trouble

    async def keep_trying(self, attempt: Callable[[Callable[[], None]], Awaitable[T]], what: str) -> T:
        """The result of `attempt`, which calls its argument whenever it has got something.

        Raises FetchError at once if trying again is of no use, InterruptedFetchError after the window.
        """
        trouble = _Trouble(self._clock, on_end=lambda: self._on_trouble(""))
        while True:
            try:
                return await attempt(trouble.end)
            except (TransientError, aiohttp.ClientError, TimeoutError) as error:
                _raise_if_hopeless(error, what)
                text = f"{what}: {_described(error)}"
                waited_s = trouble.begin()
                if waited_s >= self._window_s:
                    message = f"{text}; tried for {waited_s:.0f} s: check the address, the network policy and the proxy"
                    raise InterruptedFetchError(Reason.UNREACHABLE, message) from None
                self._on_trouble(text)
                wait_s = self._wait_s(trouble.num_failures, error)
                log_event(
                    log, logging.WARNING, "trying again", what=what, why=_described(error), wait_s=round(wait_s, 1)
                )
                await self._sleep(wait_s)

    def _wait_s(self, num_failures: int, error: Exception) -> float:
        """Doubling, shortened at random so that pods do not come back together; a longer wait that the source asks for wins."""
        asked = error.retry_after_s if isinstance(error, TransientError) else None
        if asked is not None:
            return min(max(asked, _FIRST_WAIT_S), _MAX_RETRY_AFTER_S)
        longest = min(_MAX_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(num_failures, 16))
        return longest * (0.5 + self._rng.random() / 2)


class _Trouble:
    """Failures in a row."""

    def __init__(self, clock: Callable[[], float], on_end: Callable[[], None]) -> None:
        self._clock = clock
        self._on_end = on_end
        self._since_s: float | None = None
        self.num_failures = 0

    def begin(self) -> float:
        """One more failure; seconds since the first."""
        self.num_failures += 1
        if self._since_s is None:
            self._since_s = self._clock()
        return self._clock() - self._since_s

    def end(self) -> None:
        """It works again."""
        if self._since_s is not None:
            self._on_end()
        self._since_s, self.num_failures = None, 0


def _raise_if_hopeless(error: Exception, what: str) -> None:
    if isinstance(error, _CERTIFICATES):
        message = f"{what}: the certificate is not trusted ({error}); name its authority in the release's CA ConfigMap"
        raise FetchError(Reason.UNREACHABLE, message) from None
    if isinstance(error, aiohttp.InvalidURL):
        raise FetchError(Reason.UNREACHABLE, f"{what}: the address is not a URL; correct it") from None


def _described(error: Exception) -> str:
    return str(error) or type(error).__name__
