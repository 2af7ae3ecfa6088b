"""Asks one endpoint whether it is ready, and fetches its prompt bundle. Runs at once when somebody suspects the endpoint.

A worker that was stopped, or whose node is gone, keeps its connections: nothing ends them but time. One that reported load, has been
silent for long and fails a probe besides has lost what it had in flight, and whoever waits there is told (`Endpoint.lose`). So has one
whose engine still reports, but whose server answers no probe for much longer.

One whose port is closed, or that says that it cannot serve, has lost its cache as far as we can know: what was sent there counts for
nothing then, also where no events would tell of its next life. One that merely answers too late keeps its credit.

Load never comes this way: it is pushed in load reports.
"""

import asyncio
import logging
import math
from collections.abc import Callable

import aiohttp
import msgspec

from quire_contract import names
from quire_contract.prompt_bundle import PromptBundle, digest_of
from quire_contract.router_settings import FaultSettings
from quire_contract.telemetry import log_event
from quire_contract.trust import Trust
from quire_contract.wire import WireError
from quire_router.endpoints import Endpoint
from quire_router.prompts import BundleError, PromptReader

log = logging.getLogger("quire_router.prober")

INTERVAL_DOWN_S = 0.25
INTERVAL_DOWN_MOST_S = 2.0
DOWN_SHARE = 0.1
"""What has been down for long is asked less often: a thousand workers may take minutes to load, and are probed by every router."""
INTERVAL_READY_S = 0.5
INTERVAL_REPORTED_S = 2.0
"""With load reports coming in, death shows as a broken connection and probes are only a second look."""
GAP_S = 0.05
"""Shortest time between two probes, whoever suspects whatever."""
TIMEOUT_S = 1.0
MAX_MISSES = 2
"""Probes in a row that may time out; a refused connection needs no second one."""
LEARN_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 128 * 1024 * 1024
"""Of a bundle; large tokenizers take some 30 MiB."""
RELEARN_S = 5.0
"""Time until a bundle that could not be had is asked for again."""


DEAF_FACTOR = 3.0
"""A server may be slow for as long as this many silences, while its engine reports that it works."""
SLOW_S = 1.0
"""A probe that took so much longer than its limit says that this process was held up, not that the endpoint is gone."""


class BundleInfo(msgspec.Struct, frozen=True):
    """What the router reads of the answer that names a worker's bundle."""

    digest: str


class Prober:
    """Runs until cancelled."""

    def __init__(
        self,
        endpoint: Endpoint,
        session: aiohttp.ClientSession,
        reader: PromptReader,
        trust: Trust | None,
        lost_after_s: Callable[[], float] = lambda: FaultSettings().lost_after_s,
    ) -> None:
        self._endpoint = endpoint
        self._session = session
        self._reader = reader
        self._headers = {} if trust is None else {names.HEADER_TOKEN: trust.token}
        self._suspected = asyncio.Event()
        self._lost_after_s = lost_after_s
        self._misses = 0
        self._answered_s = math.inf
        """When a probe was answered last, in any way; before the first time there is nothing to lose."""
        self._down_since_s: float | None = None
        self._relearn_s = 0.0
        self._complained = ""
        endpoint.on_suspect = self._suspected.set

    async def run(self) -> None:
        """Probe for ever."""
        while True:
            self._suspected.clear()
            await self.probe()
            if self._endpoint.ready and not self._knows_bundle():
                await self._learn()
            await asyncio.sleep(GAP_S)
            try:
                async with asyncio.timeout(self._interval_s() - GAP_S):
                    await self._suspected.wait()
            except TimeoutError:
                continue

    async def run_out(self) -> None:
        """For an endpoint that is no more in the configuration: watch over what is in flight there until nothing is.

        Its load reports are not followed any more, so every answer to a probe counts as a sign of life.
        """
        endpoint = self._endpoint
        while endpoint.uses:
            started_s = asyncio.get_running_loop().time()
            try:
                async with self._session.get(
                    endpoint.url + names.PATH_READY,
                    timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                    allow_redirects=False,
                ):
                    if math.isfinite(endpoint.heard_s):
                        endpoint.heard_s = asyncio.get_running_loop().time()
            except (TimeoutError, aiohttp.ClientError, ConnectionError):
                self._end_what_is_lost(started_s)
            await asyncio.sleep(INTERVAL_READY_S)

    async def probe(self) -> None:
        """Ask once."""
        started_s = asyncio.get_running_loop().time()
        try:
            async with self._session.get(
                self._endpoint.url + names.PATH_READY,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                allow_redirects=False,
            ) as answer:
                self._take_answer(answer.status, answer.headers.get(names.HEADER_REASON, ""))
        except TimeoutError:
            self._misses += 1
            if self._misses >= MAX_MISSES:
                self._down("does not answer its readiness probe")
            self._end_what_is_lost(started_s)
        except (aiohttp.ClientError, ConnectionError) as error:
            self._gone(f"cannot be reached ({type(error).__name__})")
            self._end_what_is_lost(started_s)

    def _take_answer(self, status: int, reason: str) -> None:
        self._misses = 0
        self._answered_s = asyncio.get_running_loop().time()
        if status == 200:
            if not self._endpoint.ready:
                log_event(log, logging.INFO, "ready", endpoint=self._endpoint.id)
            self._endpoint.mark_ready(self._answered_s)
            return
        self._endpoint.draining = reason == names.REASON_DRAINING
        self._gone(reason or f"answers its readiness probe with {status}")

    def _down(self, why: str) -> None:
        self._log_down(why)
        self._endpoint.mark_not_ready(why)

    def _gone(self, why: str) -> None:
        self._log_down(why)
        self._endpoint.mark_gone(why)

    def _log_down(self, why: str) -> None:
        if self._endpoint.ready:
            log_event(log, logging.WARNING, "down", endpoint=self._endpoint.id, why=why)

    def _end_what_is_lost(self, started_s: float) -> None:
        """A probe that began at `started_s` has failed: if the endpoint has been silent for long too, its streams go on elsewhere."""
        endpoint, now_s = self._endpoint, asyncio.get_running_loop().time()
        limit_s = self._lost_after_s()
        if not endpoint.uses or not math.isfinite(endpoint.heard_s) or now_s - started_s > TIMEOUT_S + SLOW_S:
            return
        silent_s = now_s - endpoint.heard_s
        if silent_s >= limit_s or now_s - self._answered_s >= DEAF_FACTOR * limit_s:
            num_lost = endpoint.lose()
            log_event(
                log, logging.WARNING, "lost", endpoint=endpoint.id, silent_s=round(silent_s, 1), requests=num_lost
            )

    def _interval_s(self) -> float:
        """Until the next probe; no later than at the moment when silence would mean that requests there are lost."""
        usual_s = self._usual_interval_s()
        if not self._endpoint.uses or not math.isfinite(self._endpoint.heard_s):
            return usual_s
        left_s = self._endpoint.heard_s + self._lost_after_s() - asyncio.get_running_loop().time()
        return min(usual_s, max(INTERVAL_DOWN_S, left_s))

    def _usual_interval_s(self) -> float:
        if not self._endpoint.ready:
            now_s = asyncio.get_running_loop().time()
            self._down_since_s = now_s if self._down_since_s is None else self._down_since_s
            return min(INTERVAL_DOWN_MOST_S, max(INTERVAL_DOWN_S, DOWN_SHARE * (now_s - self._down_since_s)))
        self._down_since_s = None
        return INTERVAL_READY_S if self._endpoint.report is None else INTERVAL_REPORTED_S

    def _knows_bundle(self) -> bool:
        digest = self._endpoint.digest
        return digest is not None and self._reader.knows(digest)

    async def _learn(self) -> None:
        """Find out which prompt bundle the endpoint uses, and fetch it if it is new. Failing costs only precision."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._relearn_s:
            return
        self._relearn_s = now_s + RELEARN_S
        try:
            async with asyncio.timeout(LEARN_TIMEOUT_S):
                digest = msgspec.json.decode(await self._get(names.PATH_PROMPT_BUNDLE), type=BundleInfo).digest
                if not self._reader.knows(digest):
                    await self._fetch(digest)
        except (
            aiohttp.ClientError,
            ConnectionError,
            TimeoutError,
            msgspec.DecodeError,
            WireError,
            BundleError,
        ) as error:
            self._complain(f"{type(error).__name__}: {error}")
            return
        self._relearn_s = 0.0
        bundle = self._reader.bundle(digest)
        self._endpoint.digest = digest
        self._endpoint.max_model_len = None if bundle is None else bundle.max_model_len
        log_event(log, logging.INFO, "bundle", endpoint=self._endpoint.id, digest=digest[:16])

    async def _fetch(self, digest: str) -> None:
        data = await self._get(f"{names.PATH_PROMPT_BUNDLE}/{digest}")
        if digest_of(data) != digest:
            raise BundleError(f"its bytes do not have the digest {digest[:16]} that it gave")
        loop = asyncio.get_running_loop()
        bundle = PromptBundle.from_bytes(data)
        await loop.run_in_executor(None, self._reader.add, digest, bundle)

    async def _get(self, path: str) -> bytes:
        timeout = aiohttp.ClientTimeout(total=LEARN_TIMEOUT_S)
        async with self._session.get(
            self._endpoint.url + path,
            headers=self._headers,
            timeout=timeout,
            allow_redirects=False,  # the token is for nobody else
        ) as answer:
            if answer.status in (401, 403):
                raise BundleError("it does not accept our token; router and worker need the same --trust-dir")
            if answer.status != 200:
                raise BundleError(f"GET {path.split('/')[2]} gave {answer.status}")
            data = bytearray()
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > MAX_ANSWER_BYTES:
                    raise BundleError(f"GET {path.split('/')[2]} gave more than {MAX_ANSWER_BYTES} bytes")
            return bytes(data)

    def _complain(self, problem: str) -> None:
        if problem != self._complained:
            self._complained = problem
            log_event(log, logging.WARNING, "no_bundle", endpoint=self._endpoint.id, problem=problem)
