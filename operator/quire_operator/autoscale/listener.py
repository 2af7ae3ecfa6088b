"""Asks every router of a changing set what is asked of the services, over and over, and keeps the last answers.

One long poll a router: it answers at once when a queue begins, and otherwise once a second, so that an answer that is missing is noticed
soon. HTTP only; this module must not know clusters, policies or what is made of the answers.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp

from quire_contract import names
from quire_contract.demand_report import DemandReport, decode_demand
from quire_contract.telemetry import Trouble, log_event
from quire_contract.wire import WireError
from quire_operator.autoscale.aggregate import RouterState

logger = logging.getLogger(__name__)

WAIT_S = 1.0
"""How long a router may keep a question that has no news."""
_GRACE_S = 3.0
"""How much longer an answer may take on its way."""
_GAP_S = 0.02
"""Between an answer and the next question: no router is asked more often, whatever it answers."""
_RETRY_S = (0.1, 3.0)
"""The first wait after a failure and the longest."""
_MAX_ANSWER_BYTES = 16 * 2**20
_LARGE_BYTES = 2**19
"""What is larger is decoded in a thread."""
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError, WireError)


@dataclass(frozen=True, kw_only=True)
class RouterAddress:
    """Where one router answers."""

    url: str
    """Such as http://10.0.0.7:8080; no path."""
    is_leaving: bool = False
    """It was told to end, and is listened to for as long as it answers."""


@dataclass(kw_only=True)
class _Ear:
    """What was heard from one router."""

    url: str
    boot_s: float
    """When this start of it was first heard of, or was first asked."""
    report: DemandReport | None = None
    heard_s: float = float("-inf")
    trouble: str = ""


class DemandListener:
    """One for the process. `run` keeps asking; `set_routers` may be called at any time, before `run` too."""

    def __init__(
        self,
        *,
        token: Callable[[], str | None],
        on_edge: Callable[[str], None],
        clock: Callable[[], float],
        rng: random.Random,
        wait_s: float = WAIT_S,
    ) -> None:
        """`token` is asked before each question; `on_edge` is told "namespace/name" of a service that has begun to hold requests;
        `clock` is monotonic, in seconds; `rng` spreads retries."""
        self._token = token
        self._on_edge = on_edge
        self._clock = clock
        self._rng = rng
        self._wait_s = wait_s
        self._routers: Mapping[str, RouterAddress] = {}
        self._ears: dict[str, _Ear] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def set_routers(self, routers: Mapping[str, RouterAddress]) -> None:
        """The set, by name. A name whose address changes is another router."""
        self._routers = dict(routers)
        self._changed.set()

    def states(self) -> list[RouterState]:
        """What is known of each router of the set now, by name."""
        return [self._state(name) for name in sorted(self._routers)]

    async def run(self) -> None:
        """Ask until cancelled."""
        timeout = aiohttp.ClientTimeout(total=self._wait_s + _GRACE_S, connect=_GRACE_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            try:
                async with asyncio.TaskGroup() as group:
                    while True:
                        self._changed.clear()
                        await self._follow(group, session)
                        await self._changed.wait()
            finally:
                self._tasks.clear()

    async def _follow(self, group: asyncio.TaskGroup, session: aiohttp.ClientSession) -> None:
        """Begin with the new ones of the set and end with those that left it."""
        wanted = {name: address.url for name, address in self._routers.items()}
        gone = [name for name, ear in self._ears.items() if wanted.get(name) != ear.url]
        for name in gone:
            self._ears.pop(name)
        await self._stop([name for name in gone if name in self._tasks])
        for name, url in wanted.items():
            if name not in self._tasks:
                ear = self._ears.setdefault(name, _Ear(url=url, boot_s=self._clock()))
                self._tasks[name] = group.create_task(self._listen(session, name, ear))

    async def _stop(self, stopped: list[str]) -> None:
        tasks = [self._tasks.pop(name) for name in stopped]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, session: aiohttp.ClientSession, name: str, ear: _Ear) -> None:
        trouble, retry_s = Trouble(self._clock), _RETRY_S[0]
        while True:
            try:
                report = await self._ask(session, ear)
            except _NO_ANSWER as error:
                ear.trouble = _told(error)
                if trouble.is_news(ear.trouble):
                    log_event(logger, logging.WARNING, "router tells no demand", router=name, reason=ear.trouble)
                await asyncio.sleep(retry_s * self._rng.uniform(0.5, 1.0))
                retry_s = min(2 * retry_s, _RETRY_S[1])
                continue
            retry_s = _RETRY_S[0]
            self._hear(ear, report)
            await asyncio.sleep(_GAP_S)

    async def _ask(self, session: aiohttp.ClientSession, ear: _Ear) -> DemandReport:
        """At once after a failure: what is known by then is old."""
        is_first = ear.report is None or bool(ear.trouble)
        params = {} if is_first or ear.report is None else {"since": str(ear.report.edge), "wait": str(self._wait_s)}
        token = self._token()
        headers = {names.HEADER_TOKEN: token} if token else {}
        url = ear.url + names.PATH_DEMAND
        async with session.get(url, params=params, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise WireError(f"status {answer.status}")
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise WireError("the answer is too large")
        if len(body) > _LARGE_BYTES:
            return await asyncio.to_thread(decode_demand, bytes(body))
        return decode_demand(bytes(body))

    def _hear(self, ear: _Ear, report: DemandReport) -> None:
        before = ear.report
        if before is None or before.boot != report.boot:
            ear.boot_s, before = self._clock(), None
        is_edge = before is None or before.edge != report.edge
        ear.report, ear.heard_s, ear.trouble = report, self._clock(), ""
        if not is_edge:
            return
        known = {} if before is None else before.services
        for service, demand in report.services.items():
            earlier = known.get(service)
            if demand.held and (earlier is None or not earlier.held or demand.arrivals != earlier.arrivals):
                self._on_edge(service)

    def _state(self, name: str) -> RouterState:
        now_s, address = self._clock(), self._routers[name]
        ear = self._ears.get(name)
        if ear is None or ear.url != address.url:  # not asked yet
            return RouterState(name=name, is_leaving=address.is_leaving)
        return RouterState(
            name=name,
            report=ear.report,
            age_s=now_s - ear.heard_s,
            boot_age_s=now_s - ear.boot_s,
            trouble=ear.trouble,
            is_leaving=address.is_leaving,
        )


def _told(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    return str(error)[:200] or type(error).__name__
