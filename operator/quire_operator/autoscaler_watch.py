"""Which other autoscalers the cluster has, looked for again and again: KEDA may be installed later, and taken away again.

While one is there, those of its objects that are ours are watched. This module must not know what the objects say, or who uses which.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.reflector import Reflector
from quire_contract.kube.resources import HPA_V2, SCALED_OBJECT, ResourceKind
from quire_contract.telemetry import Trouble, log_event
from quire_operator.autoscale.provider import Autoscalers
from quire_operator.store import KubeObject, ObjectStore

logger = logging.getLogger(__name__)

POLL_S = 10.0
_RETRY_S = 1.0
_SYNC_S = 20.0
_FORBIDDEN = 403
_GONE = frozenset({404, 410})


class AutoscalerWatch:
    """One term of leadership's. `run` keeps looking; `found` is what the last look saw."""

    def __init__(
        self,
        client: KubeClient,
        *,
        make_reflector: Callable[[ResourceKind, str | None], Reflector],
        store: ObjectStore,
        namespaces: Sequence[str | None],
        on_change: Callable[[], None],
        serves_keda: bool,
        poll_s: float = POLL_S,
    ) -> None:
        """`store` holds the watched objects; `namespaces` as a reflector takes them; `on_change` is called when `found` is another;
        without `serves_keda` the release has nothing that KEDA could ask, and KEDA counts as absent."""
        self._client = client
        self._make_reflector = make_reflector
        self._store = store
        self._namespaces = tuple(namespaces)
        self._on_change = on_change
        self._serves_keda = serves_keda
        self._poll_s = poll_s
        self._watches: dict[ResourceKind, list[asyncio.Task[None]]] = {}
        self._looked = asyncio.Event()
        self._trouble = Trouble()
        self.found = Autoscalers()

    @property
    def looked(self) -> asyncio.Event:
        """Set after the first look."""
        return self._looked

    async def run(self) -> None:
        """Look until cancelled. What was known holds while the server is away."""
        async with asyncio.TaskGroup() as group:
            while True:
                wait_s = self._poll_s
                try:
                    await self._look(group)
                except KubeError as error:
                    wait_s = _RETRY_S
                    if self._trouble.is_news(str(error)):
                        log_event(logger, logging.WARNING, "cannot look for autoscalers", reason=str(error))
                else:
                    self._looked.set()
                await asyncio.sleep(wait_s)

    async def _look(self, group: asyncio.TaskGroup) -> None:
        keda, keda_trouble = False, "this release serves no external scaler (chart value keda.enabled)"
        if self._serves_keda:
            keda, keda_trouble = await self._follow(SCALED_OBJECT, group)
        hpa, hpa_trouble = await self._follow(HPA_V2, group)
        found = Autoscalers(
            has_keda=keda,
            keda_trouble=keda_trouble if not keda else "",
            has_hpa=hpa,
            hpa_trouble=hpa_trouble if not hpa else "",
            minor=await self._client.server_minor(),
        )
        if found != self.found:
            self.found = found
            log_event(logger, logging.INFO, "autoscalers", keda=keda, hpa=hpa)
            self._on_change()

    async def _follow(self, kind: ResourceKind, group: asyncio.TaskGroup) -> tuple[bool, str]:
        """Whether the kind is there and watched; else why not, for a person, if more is known than that it is not served."""
        is_there, trouble = await self._probe(kind)
        if not is_there:
            await self._leave(kind)
        elif kind not in self._watches:
            reflectors = [self._make_reflector(kind, namespace) for namespace in self._namespaces]
            self._watches[kind] = [group.create_task(reflector.run()) for reflector in reflectors]
            if not await _all_synced(reflectors):
                await self._leave(kind)
                return False, f"its {kind.plural} cannot be listed; it is tried again"
        return is_there, trouble

    async def _probe(self, kind: ResourceKind) -> tuple[bool, str]:
        if not await self._client.serves(kind):
            return False, ""
        if kind in self._watches:
            return True, ""
        try:
            for namespace in self._namespaces:
                async with contextlib.aclosing(self._client.list_pages(kind, namespace, limit=1)) as pages:
                    await anext(pages)
        except KubeError as error:
            if error.status == _FORBIDDEN:
                return False, f"the operator may not list {kind.plural}; upgrade the release's chart, or its Roles"
            if error.status in _GONE:
                return False, ""
            raise
        return True, ""

    async def _leave(self, kind: ResourceKind) -> None:
        """Nothing is known of its objects any more, and nothing can be done with them."""
        tasks = self._watches.pop(kind, [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            for namespace in self._namespaces:
                self._store.replace(kind.kind, namespace, ())


def tell_news(store: ObjectStore) -> Callable[[str, KubeObject], None]:
    """A listener that keeps from `store` what changes only an object's version: KEDA and HPAs write status all the time."""

    def tell(event: str, item: KubeObject) -> None:
        meta = item["metadata"]
        known = store.get(item["kind"], meta.get("namespace") or "", meta["name"])
        if event == "DELETED" or known is None or _without_version(known) != _without_version(item):
            store.handle(event, item)

    return tell


def _without_version(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**item, "metadata": {**item["metadata"], "resourceVersion": None}}


async def _all_synced(reflectors: Sequence[Reflector]) -> bool:
    try:
        async with asyncio.timeout(_SYNC_S):
            for reflector in reflectors:
                await reflector.synced.wait()
    except TimeoutError:
        return False
    return True
