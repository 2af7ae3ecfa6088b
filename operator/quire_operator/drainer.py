"""Has workers drained, or taken back, as decisions say. First it is written on the pod, then the worker is told: so no worker drains of
which a later operator would not know.

This module must not know why a worker is to go, beyond the word for it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import msgspec

from quire_contract import names
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import POD
from quire_contract.telemetry import Trouble, log_event
from quire_operator import pod_state
from quire_operator.cache import ClusterCache
from quire_operator.drain_plan import Leaving, cost_of
from quire_operator.keys import Key, service_key
from quire_operator.pod_address import address_of
from quire_operator.store import KubeObject
from quire_operator.timestamps import format_time
from quire_operator.trimming import trim_pod

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
_TIMEOUT = aiohttp.ClientTimeout(total=3.0)
_MAX_AT_ONCE = 32
_MAX_ANSWER_BYTES = 65_536
_REFUSED_FOR = timedelta(minutes=10)
_REFUSALS = frozenset({400, 401, 403, 422})
_GONE = frozenset({404, 409})
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError, ValueError, KeyError, TypeError)


class Drainer:
    """One for the process. `want` says what should be so, `empty` what is; `run` works on it."""

    def __init__(
        self,
        client: KubeClient,
        *,
        cache: ClusterCache,
        enqueue: Callable[[Key], None],
        token: Callable[[], str | None],
        now: Callable[[], datetime],
    ) -> None:
        """`enqueue` has a service looked at when something came of it; `token` is the release's, once it is known; `now` gives UTC."""
        self._client = client
        self._cache = cache
        self._enqueue = enqueue
        self._token = token
        self._now = now
        self._wanted: dict[Key, Mapping[str, Leaving]] = {}
        self._empty: dict[Key, set[str]] = {}
        self._news = asyncio.Event()
        self._refused: datetime | None = None
        self._troubles: dict[str, Trouble] = {}
        """By pod."""
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)

    @property
    def may_mark(self) -> bool:
        """Whether the API server lets pods be marked, as far as is known: without that, replicas go as they always did, and drain when
        they are told to end."""
        return self._refused is None or self._now() - self._refused > _REFUSED_FOR

    def empty(self, key: Key) -> frozenset[str]:
        """The service's pods that drain and have nothing left."""
        return frozenset(self._empty.get(key, ()))

    def want(self, key: Key, leaving: Mapping[str, Leaving]) -> None:
        """These pods of the service shall drain, and no others."""
        document = self._cache.document(key)
        marked = () if document is None else [pod for pod in self._cache.pods_of(document) if pod_state.is_victim(pod)]
        if not leaving and not marked:
            self.forget(key)
            return
        if self._wanted.get(key) != leaving:
            self._wanted[key] = dict(leaving)
            self._news.set()

    def forget(self, key: Key) -> None:
        """The service is gone, or nothing of it drains."""
        self._wanted.pop(key, None)
        self._empty.pop(key, None)
        if not self._wanted:
            self._troubles.clear()

    async def run(self) -> None:
        """Work until cancelled."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()) as session:
            while True:
                self._news.clear()
                await asyncio.gather(*(self._look(session, key) for key in list(self._wanted)))
                try:
                    async with asyncio.timeout(_LOOK_S if self._wanted else None):
                        await self._news.wait()
                except TimeoutError:
                    pass

    async def _look(self, session: aiohttp.ClientSession, key: Key) -> None:
        document, leaving = self._cache.document(key), self._wanted.get(key, {})
        pods = [pod for pod in self._cache.pods_of(document) if pod_state.is_alive(pod)] if document else []
        before = self.empty(key)
        answers = await asyncio.gather(*(self._tend(session, pod, leaving.get(_name(pod))) for pod in pods))
        after = {_name(pod) for pod, is_empty in zip(pods, answers, strict=True) if is_empty}
        if key in self._wanted:
            self._empty[key] = after
        if after != before:
            self._enqueue(key)

    async def _tend(self, session: aiohttp.ClientSession, pod: KubeObject, leaving: Leaving | None) -> bool:
        """Whether the pod drains and is empty. What fails now is tried again at the next look."""
        try:
            if leaving is None:
                if pod_state.is_victim(pod):
                    await self._take_back(session, pod)
                return False
            await self._mark(pod, leaving)
            told = await self._ask(session, "POST", pod)
            return bool(told["draining"]) and int(told["num_requests"]) == 0
        except KubeError as error:
            if error.status not in _GONE:
                self._complain("pod not marked; upgrade the release's chart, or its Roles", pod, str(error))
            if error.status in _REFUSALS:
                self._refused = self._now()
                self._enqueue(service_key(pod["metadata"]["namespace"], _service(pod)))
        except _NO_ANSWER as error:
            self._complain("worker not told to drain", pod, repr(error))
        return False

    def _complain(self, what: str, pod: KubeObject, reason: str) -> None:
        name = _name(pod)
        if self._troubles.setdefault(name, Trouble()).is_news(f"{what} {reason}"):
            log_event(
                logger, logging.WARNING, what, pod=name, namespace=pod["metadata"]["namespace"], reason=reason[:300]
            )

    async def _mark(self, pod: KubeObject, leaving: Leaving) -> None:
        annotations: dict[str, str | None] = {}
        if not pod_state.is_victim(pod):
            annotations[pod_state.ANNOTATION_LEAVING] = f"{format_time(self._now())} {leaving.why}"
            log_event(
                logger,
                logging.INFO,
                "worker drains",
                pod=_name(pod),
                namespace=pod["metadata"]["namespace"],
                reason=leaving.why,
            )
        if cost_of(pod) != str(leaving.cost):
            annotations[names.ANNOTATION_DELETION_COST] = str(leaving.cost)
        if annotations:
            await self._annotate(pod, annotations)

    async def _take_back(self, session: aiohttp.ClientSession, pod: KubeObject) -> None:
        """The worker first: a pod without the mark must not drain."""
        await self._ask(session, "DELETE", pod)
        await self._annotate(pod, {pod_state.ANNOTATION_LEAVING: None, names.ANNOTATION_DELETION_COST: None})
        meta = pod["metadata"]
        log_event(logger, logging.INFO, "worker is taken back", pod=meta["name"], namespace=meta["namespace"])

    async def _annotate(self, pod: KubeObject, annotations: Mapping[str, str | None]) -> None:
        meta = pod["metadata"]
        body = {"metadata": {"uid": meta["uid"], "annotations": dict(annotations)}}
        written = await self._client.merge_patch(POD, meta["namespace"], meta["name"], body)
        self._cache.pods.put(trim_pod(written))

    async def _ask(self, session: aiohttp.ClientSession, method: str, pod: KubeObject) -> Any:
        address, token = address_of(pod), self._token()
        if not address:
            raise ValueError("it has no address")
        url = f"http://{address}:{names.PORT_HTTP}{names.PATH_DRAIN}"
        headers = {names.HEADER_TOKEN: token} if token else {}
        async with self._slots, session.request(method, url, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            return msgspec.json.decode(await answer.content.read(_MAX_ANSWER_BYTES))


def _service(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("labels") or {}).get(names.LABEL_SERVICE, ""))


def _name(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])
