"""Asks routers, model fetchers and starting workers for what decisions want to know, every few seconds, only while one does.

This module must not know what is made of the answers.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, get_args

import aiohttp
import msgspec

from quire_contract import names
from quire_contract.startup_report import StartupReport
from quire_contract.telemetry import log_event
from quire_operator.cache import ClusterCache
from quire_operator.decision import CanaryObservation, Decision, FetchProgress
from quire_operator.keys import Key
from quire_operator.pod_address import address_of
from quire_operator.router_stats import RouterAnswer, StepTally, parse_answer
from quire_operator.store import KubeObject

logger = logging.getLogger(__name__)

POLL_S = 5.0
_TIMEOUT = aiohttp.ClientTimeout(total=3.0)
_MAX_ANSWER_BYTES = 8 * 2**20
_MAX_AT_ONCE = 32
_PHASES = get_args(FetchProgress.__annotations__["phase"])
_MAX_MESSAGE_CHARS = 1024


class Observations:
    """What was last observed for each service. `run` keeps asking."""

    def __init__(
        self,
        *,
        cache: ClusterCache,
        enqueue: Callable[[Key], None],
        token: Callable[[], str | None],
        now: Callable[[], datetime],
        ports: tuple[int, int, int] = (names.PORT_ROUTER, names.PORT_FETCH, names.PORT_HTTP),
        poll_s: float = POLL_S,
    ) -> None:
        """`token` is the release's, once it is known; `ports`: of routers, fetchers and workers; `poll_s` between two questions."""
        self._cache = cache
        self._enqueue = enqueue
        self._token = token
        self._now = now
        self._poll_s = poll_s
        self._router_port, self._fetch_port, self._worker_port = ports
        self._tallies: dict[Key, StepTally] = {}
        self._fetching: set[Key] = set()
        self._fetches: dict[Key, dict[str, FetchProgress]] = {}
        self._starting: dict[Key, str] = {}
        self._startups: dict[Key, dict[str, StartupReport]] = {}
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)

    def canary(self, key: Key) -> CanaryObservation | None:
        """What routers counted since the service's step began."""
        tally = self._tallies.get(key)
        return None if tally is None else tally.observation()

    def fetches(self, key: Key) -> Mapping[str, FetchProgress]:
        """How far the service's fetchers are, by pod."""
        return self._fetches.get(key, {})

    def startups(self, key: Key) -> Mapping[str, StartupReport]:
        """What the service's workers told of their start, by pod."""
        return self._startups.get(key, {})

    def want(self, key: Key, document: Mapping[str, Any], decision: Decision) -> None:
        """Begin, go on with or end what the decision asks for. Another step is counted anew."""
        if decision.wants_canary_stats is None:
            self._tallies.pop(key, None)
        else:
            step = str((decision.status.get("rollout") or {}).get("stepStartedAt"))
            tally = self._tallies.get(key)
            if tally is None or (tally.step, tally.revisions) != (step, decision.wants_canary_stats):
                service = f"{key.namespace}/{key.name}"
                self._tallies[key] = StepTally(service=service, revisions=decision.wants_canary_stats, step=step)
        if decision.wants_fetch_progress:
            self._fetching.add(key)
        else:
            self._fetching.discard(key)
            self._fetches.pop(key, None)
        if decision.wants_startup is None:
            self._starting.pop(key, None)
            self._startups.pop(key, None)
        else:
            self._starting[key] = decision.wants_startup

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._tallies.pop(key, None)
        self._fetching.discard(key)
        self._fetches.pop(key, None)
        self._starting.pop(key, None)
        self._startups.pop(key, None)

    async def run(self) -> None:
        """Ask until cancelled."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()) as session:
            while True:
                await asyncio.gather(
                    self._ask_routers(session), self._ask_fetchers(session), self._ask_workers(session)
                )
                await asyncio.sleep(self._poll_s)

    async def _ask_routers(self, session: aiohttp.ClientSession) -> None:
        if not self._tallies:
            return
        pods = [pod for pod in self._cache.routers.all() if address_of(pod) and _is_running(pod)]
        answers = await asyncio.gather(*(self._ask_router(session, pod) for pod in pods))
        now = self._now()
        heard = [(pod["metadata"]["uid"], told) for pod, told in zip(pods, answers, strict=True) if told is not None]
        for tally in self._tallies.values():
            for uid, told in heard:
                tally.add(uid, told, now)
        for key in list(self._tallies):
            self._enqueue(key)

    async def _ask_router(self, session: aiohttp.ClientSession, pod: KubeObject) -> RouterAnswer | None:
        token = self._token()
        headers = {names.HEADER_TOKEN: token} if token else {}
        url = f"http://{address_of(pod)}:{self._router_port}{names.PATH_REVISION_STATS}"
        try:
            return parse_answer(await self._get(session, url, headers))
        except _NO_ANSWER as error:
            name = pod["metadata"]["name"]
            log_event(logger, logging.WARNING, "router told no counts", pod=name, reason=repr(error))
            return None

    async def _ask_fetchers(self, session: aiohttp.ClientSession) -> None:
        for key in list(self._fetching):
            document = self._cache.document(key)
            pods = [] if document is None else [pod for pod in self._cache.pods_of(document) if _may_fetch(pod)]
            answers = await asyncio.gather(*(self._ask_fetcher(session, pod) for pod in pods))
            found = {pod["metadata"]["name"]: told for pod, told in zip(pods, answers, strict=True) if told is not None}
            if key in self._fetching and found != self._fetches.get(key, {}):
                self._fetches[key] = found
                self._enqueue(key)

    async def _ask_fetcher(self, session: aiohttp.ClientSession, pod: KubeObject) -> FetchProgress | None:
        """None from a pod whose fetcher does not listen yet, or no longer."""
        try:
            told = await self._get(
                session, f"http://{address_of(pod)}:{self._fetch_port}{names.PATH_FETCH_PROGRESS}", {}
            )
            total = told.get("total_bytes")
            if told["phase"] not in _PHASES:
                return None
            return FetchProgress(
                phase=told["phase"],
                done_bytes=int(told["done_bytes"]),
                total_bytes=None if total is None else int(total),
                message=str(told.get("message") or "")[:_MAX_MESSAGE_CHARS],
                trouble=str(told.get("trouble") or "")[:_MAX_MESSAGE_CHARS],
            )
        except _NO_ANSWER:
            return None

    async def _ask_workers(self, session: aiohttp.ClientSession) -> None:
        """Of those that became ready not long ago, how they started."""
        await asyncio.gather(*(self._ask_worker(session, key, name) for key, name in list(self._starting.items())))

    async def _ask_worker(self, session: aiohttp.ClientSession, key: Key, name: str) -> None:
        document = self._cache.document(key)
        pods = () if document is None else self._cache.pods_of(document)
        pod = next((pod for pod in pods if pod["metadata"]["name"] == name and address_of(pod)), None)
        if pod is None:
            return
        token = self._token()
        headers = {names.HEADER_TOKEN: token} if token else {}
        url = f"http://{address_of(pod)}:{self._worker_port}{names.PATH_STARTUP}"
        try:
            told = msgspec.convert(await self._get(session, url, headers), StartupReport)
        except _NO_ANSWER:
            return  # a worker of an earlier release does not tell
        found = {name: told}
        if key in self._starting and _shown(found) != _shown(self._startups.get(key, {})):
            self._startups[key] = found
            self._enqueue(key)

    async def _get(self, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> Any:
        async with self._slots, session.get(url, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            content = await answer.content.read(_MAX_ANSWER_BYTES)
            while chunk := await answer.content.read(_MAX_ANSWER_BYTES):
                content += chunk
                if len(content) > _MAX_ANSWER_BYTES:
                    raise ValueError("the answer is too large")
            return msgspec.json.decode(content)


_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError, AttributeError)
"""A pod that is starting, stopping or no router of ours is no reason to stop asking."""


def _shown(reports: Mapping[str, StartupReport]) -> dict[str, StartupReport]:
    """Without what changes by itself."""
    return {name: msgspec.structs.replace(report, elapsed_s=0.0) for name, report in reports.items()}


def _is_running(pod: Mapping[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") == "Running"


def _may_fetch(pod: Mapping[str, Any]) -> bool:
    """Its model fetcher is an init container: the pod is not yet initialised, but has an address."""
    status: Mapping[str, Any] = pod.get("status") or {}
    conditions: Iterable[Mapping[str, Any]] = status.get("conditions") or ()
    is_initialized = any(c.get("type") == "Initialized" and c.get("status") == "True" for c in conditions)
    return bool(status.get("podIP")) and not is_initialized and status.get("phase") == "Pending"
