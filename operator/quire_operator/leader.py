"""Who may act: the holder of a Lease. Renews it, notices in time that it is lost, and gives it back.

A holder that cannot renew stops `_MARGIN_S` before anybody else may take over, whatever the reason, the API server's absence
included: from here, a server that is down looks like a server that others still reach. Clocks of different machines are never
compared: what counts is how long ago *we* saw the Lease change. This module must not know what the leader does.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from quire_contract.kube.client import KubeClient, KubeError, KubeObject
from quire_contract.kube.resources import LEASE
from quire_contract.telemetry import Trouble, log_event

logger = logging.getLogger(__name__)

DURATION_S = 15
RENEW_S = 2.0
_MARGIN_S = 3.0
_ATTEMPT_S = 4.0


class LeadershipLostError(RuntimeError):
    """The Lease is another's, or could not be renewed in time: the process must stop at once."""


class LeaderElection:
    """One candidate for one Lease."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`identity` is unique to this process; `clock` gives seconds that never go back."""
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._rng = rng
        self._clock = clock
        self._lease: KubeObject | None = None
        self._seen: tuple[Any, ...] | None = None
        self._seen_s = float("-inf")
        self._held_until_s = float("-inf")
        self._trouble = Trouble(clock)

    def holds(self) -> bool:
        """Whether acting is still safe now."""
        return self._clock() < self._held_until_s

    async def acquire(self) -> None:
        """Wait until the Lease is ours, however long that takes and whether or not the server answers."""
        while not await self._attempt(_ATTEMPT_S):  # noqa: ASYNC110 - there is no event to wait for: the Lease is elsewhere
            await asyncio.sleep(RENEW_S * self._rng.uniform(0.8, 1.2))
        log_event(logger, logging.INFO, "became leader", lease=self._name, identity=self._identity)

    async def keep(self) -> None:
        """Renew until that fails for too long, or until another holds it; then raises LeadershipLostError."""
        while True:
            await asyncio.sleep(min(RENEW_S, max(0.0, self._held_until_s - self._clock())))
            if not await self._attempt(min(_ATTEMPT_S, max(0.1, self._held_until_s - self._clock()))):
                holder = ((self._lease or {}).get("spec") or {}).get("holderIdentity")
                if self._lease is not None and holder not in (self._identity, None, ""):
                    self._held_until_s = float("-inf")
                    raise LeadershipLostError(f"Lease {self._name} is held by {holder}")
            if not self.holds():
                raise LeadershipLostError(f"Lease {self._name} could not be renewed in time")

    async def release(self) -> None:
        """Let the next one begin at once. Does nothing if the Lease is not ours; errors are logged."""
        if not self.holds():
            return
        self._held_until_s = float("-inf")
        try:
            async with asyncio.timeout(_ATTEMPT_S):
                is_released = await self._give_back()
        except (KubeError, TimeoutError) as error:
            log_event(logger, logging.WARNING, "could not release the lease", lease=self._name, reason=str(error))
        else:
            if is_released:
                log_event(logger, logging.INFO, "released the lease", lease=self._name)

    async def _give_back(self) -> bool:
        """Whether it was still ours. The server is asked: a renewal that was cut off may have been written."""
        lease = await self._read()
        if lease is None or lease["spec"].get("holderIdentity") != self._identity:
            return False
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        await self._client.replace(LEASE, self._namespace, self._name, {**lease, "spec": spec})
        return True

    async def _attempt(self, timeout_s: float) -> bool:
        """Take or renew the Lease if that is allowed. False if it is another's or the server did not answer."""
        began_s = self._clock()
        try:
            async with asyncio.timeout(timeout_s):
                taken = await self._take()
        except (KubeError, TimeoutError) as error:
            if not (isinstance(error, KubeError) and error.status == 409):  # 409: somebody was quicker; look again
                self._tell(str(error) or f"no answer in {timeout_s:.0f} s")
            self._lease = None
            return False
        if self._trouble.is_over():
            log_event(logger, logging.INFO, "lease requests are answered again", lease=self._name)
        if taken:
            self._held_until_s = began_s + DURATION_S - _MARGIN_S
        return taken

    def _tell(self, reason: str) -> None:
        if self._trouble.is_news(reason):
            log_event(logger, logging.WARNING, "lease request failed", lease=self._name, reason=reason)

    async def _take(self) -> bool:
        if self._lease is None or self._lease["spec"].get("holderIdentity") != self._identity:
            self._lease = await self._read()  # others change theirs all the time
        if self._lease is None:
            self._lease = await self._client.create(LEASE, self._namespace, self._document({}))
            return True
        if not self._is_free(self._lease["spec"]):
            return False
        self._lease = await self._client.replace(LEASE, self._namespace, self._name, self._document(self._lease))
        return True

    async def _read(self) -> KubeObject | None:
        try:
            lease = await self._client.get(LEASE, self._namespace, self._name)
        except KubeError as error:
            if error.status == 404:
                return None
            raise
        spec = lease.setdefault("spec", {})
        seen = (spec.get("holderIdentity"), spec.get("renewTime"), lease["metadata"]["resourceVersion"])
        if seen != self._seen:
            self._seen, self._seen_s = seen, self._clock()
        return lease

    def _is_free(self, spec: Mapping[str, Any]) -> bool:
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        return self._clock() > self._seen_s + float(spec.get("leaseDurationSeconds") or DURATION_S)

    def _document(self, present: Mapping[str, Any]) -> KubeObject:
        spec = present.get("spec") or {}
        is_ours = spec.get("holderIdentity") == self._identity
        transitions = int(spec.get("leaseTransitions") or 0)
        now = _now()
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": present.get("metadata") or {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": DURATION_S,
                "acquireTime": spec.get("acquireTime") if is_ours else now,
                "renewTime": now,
                "leaseTransitions": transitions if is_ours or not present else transitions + 1,
            },
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
