"""Puts workers to sleep and wakes them, as decisions say: each pod by itself and at once.

    to sleep    the pod is marked, then its worker told: no worker sleeps of which a later operator would not know
    to wake     its worker is told, then the pod marked
    lost        a worker that does not wake, however often it is told, has its pod marked as lost: whoever decides has it replaced

This module must not know why.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import aiohttp
import msgspec

from quire_contract import names
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import POD
from quire_contract.startup_report import SleepAnswer
from quire_contract.telemetry import Trouble, log_event
from quire_operator import pod_state
from quire_operator.cache import ClusterCache
from quire_operator.drain_plan import COST_EMPTY
from quire_operator.keys import Key
from quire_operator.pod_address import address_of
from quire_operator.store import KubeObject
from quire_operator.timestamps import format_time
from quire_operator.trimming import trim_pod

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 2.0
"""After a failure; and after a sleep, as its pod counts as ready until the kubelet has noticed."""
SLEEP_WAIT_S = 20.0
"""How long a worker may wait for its running requests to end before it sleeps; it is asked again if they have not."""
WAKE_WITHIN = timedelta(seconds=30)
"""A worker that is told to wake for so long, MIN_WAKES times at least, is lost."""
MIN_WAKES = 3
_WAKE_PATIENCE = timedelta(seconds=180)
"""However few tries that are: of a worker that takes the call and does not answer."""
_TIMEOUT = aiohttp.ClientTimeout(total=180.0, connect=3.0)
"""A device's memory may take a while."""
_MAX_ANSWER_BYTES = 65_536
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError, ValueError)

_Pod = tuple[str, str]
"""Namespace and uid."""


@dataclass(kw_only=True)
class _Failing:
    """Wakes in vain, one after the other."""

    since: datetime
    last: datetime
    num: int = 0


class Sleeper:
    """One for the process. `want` says what is to be done; `run` has it done."""

    def __init__(
        self,
        client: KubeClient,
        *,
        cache: ClusterCache,
        enqueue: Callable[[Key, float], None],
        token: Callable[[], str | None],
        now: Callable[[], datetime],
        port: int = names.PORT_HTTP,
    ) -> None:
        """`enqueue` has a service looked at again after so many seconds; `token` is the release's, once it is known; `now` gives UTC."""
        self._client = client
        self._cache = cache
        self._enqueue = enqueue
        self._token = token
        self._now = now
        self._port = port
        self._orders: asyncio.Queue[tuple[Key, KubeObject, bool]] = asyncio.Queue()
        self._busy: dict[_Pod, bool] = {}
        """What each pod that is being asked is asked for: to be awake."""
        self._going_to_sleep: dict[_Pod, asyncio.Task[None]] = {}
        self._troubles: dict[_Pod, Trouble] = {}
        self._failing: dict[_Pod, _Failing] = {}

    def want(self, key: Key, *, sleep: frozenset[str], wake: frozenset[str]) -> None:
        """These pods of the service shall sleep, those wake. What is under way already is not begun again."""
        document = self._cache.document(key)
        if document is None or not (sleep or wake):
            return
        for pod in self._cache.pods_of(document):
            name = pod["metadata"]["name"]
            if name in wake or name in sleep:
                self._order(key, pod, awake=name in wake)

    def _order(self, key: Key, pod: KubeObject, *, awake: bool) -> None:
        identity = _identity(pod)
        busy_with = self._busy.get(identity)
        # A wake need not wait for a sleep to come about: the worker ends that. A sleep waits for its turn.
        if busy_with is None or (awake and not busy_with):
            self._busy[identity] = awake
            self._orders.put_nowait((key, pod, awake))

    async def run(self) -> None:
        """Carry out what is wanted, until cancelled."""
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                key, pod, awake = await self._orders.get()
                task = group.create_task(self._carry_out(session, key, pod, awake=awake))
                if not awake:
                    self._going_to_sleep[_identity(pod)] = task

    async def _carry_out(self, session: aiohttp.ClientSession, key: Key, pod: KubeObject, *, awake: bool) -> None:
        meta = pod["metadata"]
        again_s, began = 0.0 if awake else LOOK_AGAIN_S, self._now()
        try:
            told = await (self._wake(session, pod) if awake else self._put_to_sleep(session, pod))
            self._troubles.pop(_identity(pod), None)
            self._failing.pop(_identity(pod), None)
            if told.changed:
                state, time_s = told.state, told.time_s
                log_event(
                    logger,
                    logging.INFO,
                    "standby",
                    pod=meta["name"],
                    namespace=meta["namespace"],
                    state=state,
                    time_s=time_s,
                )
        except (KubeError, *_NO_ANSWER) as error:
            again_s = LOOK_AGAIN_S
            why = str(error) or repr(error)
            self._complain("not woken" if awake else "not put to sleep", pod, why)
            if awake and not isinstance(error, KubeError):
                await self._note_failed_wake(pod, why, began)
        finally:
            if self._busy.get(_identity(pod)) == awake:
                del self._busy[_identity(pod)]
            if not awake:
                self._going_to_sleep.pop(_identity(pod), None)
        self._enqueue(key, again_s)

    def _complain(self, what: str, pod: KubeObject, reason: str) -> None:
        meta = pod["metadata"]
        if self._cache.pods.get(POD.kind, meta["namespace"], meta["name"]) is None:
            self._troubles.pop(_identity(pod), None)  # it went meanwhile
        elif self._troubles.setdefault(_identity(pod), Trouble()).is_news(f"{what} {reason}"):
            log_event(logger, logging.WARNING, what, pod=meta["name"], namespace=meta["namespace"], reason=reason[:300])

    async def _note_failed_wake(self, pod: KubeObject, why: str, began: datetime) -> None:
        """A while without a try is the end of a row: nobody wanted it awake meanwhile."""
        now, identity = self._now(), _identity(pod)
        failing = self._failing.get(identity)
        if failing is None or began - failing.last > WAKE_WITHIN:
            self._failing = {one: kept for one, kept in self._failing.items() if now - kept.last <= _WAKE_PATIENCE}
            failing = self._failing[identity] = _Failing(since=began, last=now)
        failing.num, failing.last = failing.num + 1, now
        waited = now - failing.since
        if waited < _WAKE_PATIENCE and (waited < WAKE_WITHIN or failing.num < MIN_WAKES):
            return
        told = f"told {failing.num} times in {waited.total_seconds():.0f} s: {why[:300]}"
        try:
            await self._mark(pod, f"{pod_state.STANDBY_LOST} {told}", {names.ANNOTATION_DELETION_COST: str(COST_EMPTY)})
        except KubeError as error:
            self._complain("not marked as lost", pod, str(error))
        else:
            del self._failing[identity]

    async def _put_to_sleep(self, session: aiohttp.ClientSession, pod: KubeObject) -> SleepAnswer:
        if not pod_state.is_meant_to_sleep(pod):
            await self._mark(pod, pod_state.STANDBY_ASLEEP)
        return await self._ask(session, pod, awake=False)

    async def _wake(self, session: aiohttp.ClientSession, pod: KubeObject) -> SleepAnswer:
        """The last word: a sleep that is under way ends its wait by the first call, and comes to nothing by the second."""
        told = await self._ask(session, pod, awake=True)
        asked_before = self._going_to_sleep.get(_identity(pod))
        if asked_before is not None:
            await asyncio.wait([asked_before])
            told = await self._ask(session, pod, awake=True)
        await self._mark(pod, f"{pod_state.STANDBY_WOKEN} {format_time(self._now())}")
        return told

    async def _mark(self, pod: KubeObject, value: str, others: Mapping[str, str] = MappingProxyType({})) -> None:
        meta = pod["metadata"]
        body = {"metadata": {"uid": meta["uid"], "annotations": {pod_state.ANNOTATION_STANDBY: value, **others}}}
        written = await self._client.merge_patch(POD, meta["namespace"], meta["name"], body)
        self._cache.pods.put(trim_pod(written))

    async def _ask(self, session: aiohttp.ClientSession, pod: KubeObject, *, awake: bool) -> SleepAnswer:
        address = address_of(pod)
        if not address:
            raise ValueError("it has no address")
        path = names.PATH_WAKE if awake else f"{names.PATH_SLEEP}?wait={SLEEP_WAIT_S:.0f}"
        token = self._token()
        headers: Mapping[str, Any] = {names.HEADER_TOKEN: token} if token else {}
        url = f"http://{address}:{self._port}{path}"
        async with session.post(url, headers=headers, allow_redirects=False) as answer:
            content = await answer.content.read(_MAX_ANSWER_BYTES)
            if answer.status != 200:
                raise ValueError(f"status {answer.status}: {content[:300].decode(errors='replace')}")
            return msgspec.json.decode(content, type=SleepAnswer)


def _identity(pod: KubeObject) -> _Pod:
    return pod["metadata"]["namespace"], pod["metadata"]["uid"]
