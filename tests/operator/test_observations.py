"""Routers and fetchers are asked only while a decision wants it, and what they say reaches the next snapshot."""

import asyncio
from datetime import UTC, datetime

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer

from quire_contract import names
from quire_contract.startup_report import StartupReport
from quire_operator.cache import ClusterCache
from quire_operator.decision import Decision, FetchProgress, RevisionCounts
from quire_operator.keys import Key, service_key
from quire_operator.observations import Observations

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = service_key("team", "demo")
DOCUMENT = {
    "apiVersion": "quire.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": "demo", "namespace": "team", "uid": "u", "resourceVersion": "1"},
}


def decision(*, canary: bool = False, fetch: bool = False, starting: str | None = None) -> Decision:
    return Decision(
        manifests=None,
        status={"rollout": {"stepStartedAt": "2026-01-01T00:00:00Z"}},
        weights={},
        events=(),
        requeue_after_s=None,
        is_upgrading=False,
        wants_canary_stats=("old", "new") if canary else None,
        wants_fetch_progress=fetch,
        wants_startup=starting,
    )


def pod(name: str, phase: str, **labels: str) -> dict:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1", "labels": labels},
        "status": {"podIP": "127.0.0.1", "phase": phase},
    }


class Parts:
    """A router and a model fetcher; notes the tokens that they were shown."""

    def __init__(self) -> None:
        self.tokens: list[str | None] = []
        self.requests = 0

    async def stats(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get(names.HEADER_TOKEN))
        self.requests += 10
        ttft = {"bounds_s": [1.0], "counts": [self.requests, self.requests]}
        counted = {"new": {"requests": self.requests, "errors": 0, "ttft": ttft}}
        return web.json_response({"boot": "b", "services": {"team/demo": counted}})

    async def progress(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"phase": "downloading", "done_bytes": 5, "total_bytes": None, "message": "", "trouble": "slow"}
        )


async def test_what_is_wanted_is_asked_and_enqueues_the_service() -> None:
    parts, keys = Parts(), asyncio.Queue()
    cache = ClusterCache(lambda key: None)
    cache.handle(None, DOCUMENT)
    cache.routers.put(pod("router", "Running"))
    cache.pods.put(pod("worker", "Pending", **{names.LABEL_SERVICE: "demo"}))
    app = web.Application()
    app.router.add_get(names.PATH_REVISION_STATS, parts.stats)
    app.router.add_get(names.PATH_FETCH_PROGRESS, parts.progress)
    server = TestServer(app)
    await server.start_server()
    observations = Observations(
        cache=cache,
        enqueue=keys.put_nowait,
        token=lambda: "t0ken",
        now=lambda: NOW,
        ports=(server.port, server.port, server.port),
        poll_s=0.01,
    )
    observations.want(KEY, DOCUMENT, decision(canary=True, fetch=True))
    running = asyncio.create_task(observations.run())

    async with asyncio.timeout(60):
        while (
            (seen := observations.canary(KEY)) is None
            or seen.revisions.get("new", RevisionCounts()).requests < 20
            or not observations.fetches(KEY)
        ):
            assert isinstance(await keys.get(), Key)

    assert seen.since == NOW
    assert set(parts.tokens) == {"t0ken"}
    assert observations.fetches(KEY) == {"worker": FetchProgress(phase="downloading", done_bytes=5, trouble="slow")}
    observations.want(KEY, DOCUMENT, decision())
    assert observations.canary(KEY) is None
    assert observations.fetches(KEY) == {}
    running.cancel()
    await asyncio.wait([running])
    await server.close()


async def test_a_worker_that_became_ready_is_asked_with_the_token_how_it_started() -> None:
    asked: asyncio.Queue[str | None] = asyncio.Queue()
    keys: asyncio.Queue[Key] = asyncio.Queue()
    report = StartupReport(pod="w1", model="demo", phase="ready", elapsed_s=3.0, ready_s=2.5)

    async def startup(request: web.Request) -> web.Response:
        asked.put_nowait(request.headers.get(names.HEADER_TOKEN))
        told = msgspec.structs.replace(report, elapsed_s=float(asked.qsize()))
        return web.Response(body=msgspec.json.encode(told), content_type="application/json")

    cache = ClusterCache(lambda key: None)
    cache.handle(None, DOCUMENT)
    for name in ("w1", "w2"):
        cache.pods.put(pod(name, "Running", **{names.LABEL_SERVICE: "demo"}))
    app = web.Application()
    app.router.add_get(names.PATH_STARTUP, startup)
    server = TestServer(app)
    await server.start_server()
    observations = Observations(
        cache=cache,
        enqueue=keys.put_nowait,
        token=lambda: "t0ken",
        now=lambda: NOW,
        ports=(1, 1, server.port),
        poll_s=0.01,
    )
    observations.want(KEY, DOCUMENT, decision(starting="w1"))
    running = asyncio.create_task(observations.run())

    async with asyncio.timeout(60):
        first = await keys.get()
        tokens = {await asked.get() for _ in range(3)}

    assert first == KEY
    assert keys.empty()
    assert tokens == {"t0ken"}
    assert observations.startups(KEY) == {"w1": msgspec.structs.replace(report, elapsed_s=1.0)}
    observations.want(KEY, DOCUMENT, decision())
    assert observations.startups(KEY) == {}
    running.cancel()
    await asyncio.wait([running])
    await server.close()


async def test_another_step_is_counted_anew() -> None:
    observations = Observations(
        cache=ClusterCache(lambda key: None), enqueue=print, token=lambda: None, now=lambda: NOW
    )
    observations.want(KEY, DOCUMENT, decision(canary=True))
    first = observations._tallies[KEY]
    observations.want(KEY, DOCUMENT, decision(canary=True))
    assert observations._tallies[KEY] is first

    observations.forget(KEY)
    observations.want(KEY, DOCUMENT, decision(canary=True))
    assert observations._tallies[KEY] is not first
