"""What watches one endpoint: a prober and a subscriber of its events. Called by `__main__` only."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Coroutine
from typing import Any

import aiohttp
import zmq
import zmq.asyncio

from quire_contract.trust import Trust
from quire_router.endpoints import Endpoint
from quire_router.kv_follower import KvFollower
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.kv_subscriber import KvSubscriber
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics
from quire_router.prober import Prober
from quire_router.prompts import PromptReader

MAX_ZMQ_SOCKETS = 32_768
"""An endpoint takes up to four; ZMQ's own limit of 1023 would end at 250 workers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watchers:
    """What all watchers share."""

    live: LiveConfig
    index: KvIndex
    sent: SentIndex
    reader: PromptReader
    metrics: RouterMetrics
    session: aiohttp.ClientSession
    context: zmq.asyncio.Context
    trust: Trust | None
    plain_events: bool
    """Event sockets are not encrypted, whatever the trust."""

    def of(self, endpoint: Endpoint) -> list[Coroutine[Any, Any, None]]:
        """The coroutines that watch `endpoint` until they are cancelled."""
        endpoint.on_gone = functools.partial(self.sent.clear, endpoint.id)
        follower = KvFollower(endpoint, self.index, self.sent, self.metrics)
        zmq_trust = None if self.plain_events else self.trust
        subscriber = KvSubscriber(endpoint, follower, self.context, trust=zmq_trust, clock=time.monotonic)
        return [self._prober(endpoint).run(), subscriber.run()]

    def of_removed(self, endpoint: Endpoint) -> Coroutine[Any, Any, None]:
        """What watches over requests at an endpoint that is no more in the configuration, until they are done."""
        return self._prober(endpoint).run_out()

    def _prober(self, endpoint: Endpoint) -> Prober:
        return Prober(endpoint, self.session, self.reader, self.trust, lambda: self.live.settings.faults.lost_after_s)


def zmq_context(stack: contextlib.AsyncExitStack) -> zmq.asyncio.Context:
    """Sockets for all endpoints' events, until the stack ends."""
    context = zmq.asyncio.Context()
    context.set(zmq.MAX_SOCKETS, MAX_ZMQ_SOCKETS)
    stack.callback(context.destroy, linger=0)
    return context
