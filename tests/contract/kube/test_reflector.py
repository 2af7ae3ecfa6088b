"""A reflector's listener always knows the last state that the server told."""

import asyncio
import json
import random
from contextlib import asynccontextmanager

from aiohttp import web

from quire_contract.kube.client import KubeClient
from quire_contract.kube.reflector import Reflector
from quire_contract.kube.resources import POD


def listed(version: str, *pods: str) -> dict[str, object]:
    return {"metadata": {"resourceVersion": version}, "items": [{"metadata": {"name": name}} for name in pods]}


def line(event: str, version: str, name: str = "") -> bytes:
    return (
        json.dumps({"type": event, "object": {"metadata": {"name": name, "resourceVersion": version}}}).encode() + b"\n"
    )


class Listener:
    """What was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self._changed = asyncio.Event()

    def replace(self, items: list[dict[str, object]]) -> None:
        self.told.append(("replace", [item["metadata"]["name"] for item in items]))
        self._changed.set()

    def event(self, event: str, item: dict[str, object]) -> None:
        self.told.append((event, item["metadata"]["name"]))
        self._changed.set()

    async def until(self, num: int) -> None:
        async with asyncio.timeout(60):
            while len(self.told) < num:
                self._changed.clear()
                await self._changed.wait()


class Waits(random.Random):
    """Counts the waits: each has a random length."""

    def __init__(self) -> None:
        super().__init__(1)
        self.number = 0

    def uniform(self, a: float, b: float) -> float:
        self.number += 1
        return super().uniform(a, b)


@asynccontextmanager
async def reflecting(api, listener: Listener, rng: random.Random | None = None):
    async with KubeClient(api.access, user_agent="quire-test") as client:
        reflector = Reflector(
            client,
            POD,
            namespace="here",
            label_selector="app=x",
            on_replace=listener.replace,
            on_event=listener.event,
            rng=rng or random.Random(1),
        )
        task = asyncio.create_task(reflector.run())
        yield reflector
        task.cancel()
        await asyncio.wait([task])


async def test_after_the_list_each_change_is_told_and_a_watch_resumes_from_the_last_version(api) -> None:
    listener = Listener()
    api.lists = [listed("5", "a")]
    api.watches = [[line("ADDED", "6", "b"), line("BOOKMARK", "8")], [line("DELETED", "9", "a")]]

    async with reflecting(api, listener) as reflector:
        await listener.until(3)

    assert listener.told == [("replace", ["a"]), ("ADDED", "b"), ("DELETED", "a")]
    assert [asked["query"]["resourceVersion"] for asked in api.asked if "watch" in asked["query"]][:2] == ["5", "8"]
    assert reflector.synced.is_set()
    assert reflector.last_contact_s > 0


async def test_a_forgotten_version_is_listed_anew_at_once(api) -> None:
    listener, waits = Listener(), Waits()
    api.lists = [listed("5", "a"), listed("70", "b")]
    api.watches = [410]

    async with reflecting(api, listener, waits):
        await listener.until(2)

    assert listener.told[:2] == [("replace", ["a"]), ("replace", ["b"])]
    assert waits.number == 0


async def test_a_version_that_was_forgotten_while_the_server_was_away_is_listed_anew_at_once(api) -> None:
    listener, waits = Listener(), Waits()
    api.lists = [listed("5", "a"), listed("5"), listed("6"), listed("70", "b")]
    api.watches = [500, 500, 410]

    async with reflecting(api, listener, waits):
        await listener.until(2)

    told_forgotten, listed_anew = api.asked[5:7]
    assert ("watch" in told_forgotten["query"], "watch" in listed_anew["query"]) == (True, False)
    assert waits.number == 2, "after each refusal, and not once the version was forgotten"
    assert listener.told[:2] == [("replace", ["a"]), ("replace", ["b"])]


async def test_while_the_server_fails_nothing_is_told_and_the_watch_goes_on_after(api) -> None:
    listener = Listener()
    api.lists = [listed("5", "a")]
    api.watches = [500, [line("MODIFIED", "6", "a")]]

    async with reflecting(api, listener):
        await listener.until(2)

    assert listener.told[:2] == [("replace", ["a"]), ("MODIFIED", "a")]


async def test_a_list_that_fails_is_tried_again(api) -> None:
    listener = Listener()
    api.lists = [web.json_response({}, status=503), listed("5", "a")]

    async with reflecting(api, listener) as reflector:
        await listener.until(1)

    assert listener.told[0] == ("replace", ["a"])
    assert reflector.synced.is_set()


async def test_a_server_restored_from_a_backup_is_listed_anew(api) -> None:
    listener = Listener()
    api.lists = [listed("500", "a", "revoked"), listed("40", "a")]
    api.watches = [503]

    async with reflecting(api, listener):
        await listener.until(2)

    assert listener.told == [("replace", ["a", "revoked"]), ("replace", ["a"])]


class Clumsy(Listener):
    """Fails at the first event."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0

    def event(self, event: str, item: dict[str, object]) -> None:
        self.failures += 1
        if self.failures == 1:
            raise RuntimeError("a defect")
        super().event(event, item)


async def test_a_listener_that_fails_once_is_told_everything_anew(api) -> None:
    listener = Clumsy()
    api.lists = [listed("5"), listed("6", "b")]
    api.watches = [[line("ADDED", "6", "b")], [line("ADDED", "7", "c")]]

    async with reflecting(api, listener):
        await listener.until(3)

    assert listener.told[:3] == [("replace", []), ("replace", ["b"]), ("ADDED", "c")]


async def test_a_watch_never_lasts_longer_than_a_bit_over_half_a_minute(api) -> None:
    listener = Listener()
    api.lists = [listed("5")]
    api.watches = [[line("BOOKMARK", "6")], [line("ADDED", "7", "a")]]

    async with reflecting(api, listener):
        await listener.until(2)

    seconds = [int(asked["query"]["timeoutSeconds"]) for asked in api.asked if "watch" in asked["query"]]
    assert max(seconds) <= 40
