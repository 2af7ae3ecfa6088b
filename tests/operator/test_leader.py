"""Who leads: taking, renewing, losing and giving back the Lease, with clocks that disagree."""

import asyncio
import random
from typing import Any

import pytest

from quire_contract.kube.client import KubeError
from quire_contract.kube.resources import LEASE
from quire_operator import leader
from quire_operator.leader import LeaderElection, LeadershipLostError


class LeaseServer:
    """Keeps one Lease, as the API server would."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.is_away = False
        self._version = 0

    async def get(self, kind, namespace, name) -> dict[str, Any]:
        self._answer()
        if self.lease is None:
            raise KubeError(404, "NotFound", "")
        return {**self.lease, "spec": dict(self.lease["spec"]), "metadata": dict(self.lease["metadata"])}

    async def create(self, kind, namespace, body) -> dict[str, Any]:
        self._answer()
        if self.lease is not None:
            raise KubeError(409, "AlreadyExists", "")
        return self._keep(body)

    async def replace(self, kind, namespace, name, body) -> dict[str, Any]:
        self._answer()
        if self.lease is None or body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise KubeError(409, "Conflict", "")
        return self._keep(body)

    def _answer(self) -> None:
        if self.is_away:
            raise KubeError(0, "Unreachable", "")

    def _keep(self, body: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self._version)}}
        return dict(self.lease)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def election(server: LeaseServer, identity: str, clock: Clock) -> LeaderElection:
    return LeaderElection(server, namespace="here", name="lease", identity=identity, rng=random.Random(1), clock=clock)


async def tries(candidate: LeaderElection, times: int = 1) -> bool:
    """Whether one of so many attempts took the Lease."""
    for _ in range(times):
        if await candidate._attempt(1.0):
            return True
    return False


async def test_the_first_takes_the_lease_and_the_second_does_not() -> None:
    server, clock = LeaseServer(), Clock()
    first, second = election(server, "first", clock), election(server, "second", clock)

    assert await tries(first)
    assert not await tries(second, 3)

    assert first.holds()
    assert not second.holds()
    assert server.lease["spec"]["holderIdentity"] == "first"


async def test_another_takes_over_only_when_it_has_itself_seen_no_renewal_for_the_whole_time() -> None:
    server, clock, others_clock = LeaseServer(), Clock(), Clock()
    others_clock.now_s = 1e9  # years ahead: must not matter
    first, second = election(server, "first", clock), election(server, "second", others_clock)
    await tries(first)
    await tries(second)

    others_clock.now_s += leader.DURATION_S - 1
    assert not await tries(second)
    await tries(first)  # renewed
    others_clock.now_s += leader.DURATION_S - 1
    assert not await tries(second)
    others_clock.now_s += leader.DURATION_S + 1
    assert await tries(second)
    assert server.lease["spec"]["leaseTransitions"] == 1


async def test_a_holder_that_cannot_renew_stops_before_another_may_begin() -> None:
    server, clock = LeaseServer(), Clock()
    first = election(server, "first", clock)
    await tries(first)
    server.is_away = True

    clock.now_s = leader.DURATION_S - 4.0
    await tries(first)
    assert first.holds()
    clock.now_s = leader.DURATION_S - 2.0
    assert not first.holds()
    with pytest.raises(LeadershipLostError, match="in time"):
        await first.keep()


async def test_a_holder_that_sees_another_stops_at_once() -> None:
    server, clock = LeaseServer(), Clock()
    first = election(server, "first", clock)
    await tries(first)
    server._keep({**server.lease, "spec": {**server.lease["spec"], "holderIdentity": "second"}})

    with pytest.raises(LeadershipLostError, match="second"):
        async with asyncio.timeout(60):
            await first.keep()
    assert not first.holds()


async def test_what_is_released_is_taken_at_once() -> None:
    server, clock = LeaseServer(), Clock()
    first, second = election(server, "first", clock), election(server, "second", clock)
    await tries(first)

    await first.release()

    assert not first.holds()
    assert await tries(second)


async def test_what_was_renewed_without_an_answer_is_released_all_the_same() -> None:
    server, clock = LeaseServer(), Clock()
    first, second = election(server, "first", clock), election(server, "second", clock)
    await tries(first)
    lease = await server.get(LEASE, "here", "lease")
    await server.replace(LEASE, "here", "lease", lease)  # written, and whoever waited for the answer was told to stop

    await first.release()

    assert await tries(second)


async def test_what_another_took_meanwhile_stays_its_own() -> None:
    server, clock = LeaseServer(), Clock()
    first = election(server, "first", clock)
    await tries(first)
    lease = await server.get(LEASE, "here", "lease")
    lease["spec"]["holderIdentity"] = "second"
    await server.replace(LEASE, "here", "lease", lease)

    await first.release()

    assert server.lease["spec"]["holderIdentity"] == "second"
    assert not first.holds()


async def test_releasing_what_was_lost_changes_nothing() -> None:
    server, clock = LeaseServer(), Clock()
    first = election(server, "first", clock)
    await tries(first)
    clock.now_s = leader.DURATION_S + 1.0

    await first.release()

    assert server.lease["spec"]["holderIdentity"] == "first"


async def test_a_server_that_is_away_for_long_is_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    server, clock = LeaseServer(), Clock()
    candidate = election(server, "first", clock)
    caplog.set_level("INFO", logger="quire_operator.leader")

    server.is_away = True
    for _ in range(36):
        clock.now_s += 2.0
        assert not await tries(candidate)
    server.is_away = False
    assert await tries(candidate)

    told = [record.getMessage() for record in caplog.records]
    assert told == ["lease request failed", "lease request failed", "lease requests are answered again"]
