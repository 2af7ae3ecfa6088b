"""Workers that mean no good or write nonsense, and configurations that are garbage: contained, and no loop dies of them."""

import asyncio
import contextlib
import random

import aiohttp
import pytest
from aiohttp import web

from quire_contract.router_config import (
    EndpointEntry,
    ModelEntry,
    RouterConfig,
    RouterConfigError,
    decode_config,
    encode_config,
    write_config,
)
from quire_contract.trust import Trust
from quire_router.config_shards import Shards
from quire_router.endpoints import Endpoint
from quire_router.kube_source import KubernetesSource
from quire_router.metrics import RouterMetrics
from quire_router.prober import INTERVAL_DOWN_MOST_S, INTERVAL_DOWN_S, Prober
from quire_router.revision_stats import RevisionCounts

BODY = {"model": "m", "prompt": "x"}


async def serve(stack, handle):
    """A server on loopback; its address."""
    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.fixture
async def stack():
    async with contextlib.AsyncExitStack() as opened:
        yield opened


def config_of(url):
    endpoint = EndpointEntry(id="e", url=url, models=["m"])
    return RouterConfig(models=[ModelEntry(name="m")], endpoints=[endpoint])


@pytest.mark.parametrize("path", ["/ready", "/internal/prompt-bundle"])
async def test_a_worker_cannot_send_the_router_and_its_token_elsewhere(stack, start_router, until, path):
    stolen, asked = [], []

    async def thief(request):
        stolen.append(dict(request.headers))
        return web.json_response({"digest": "0" * 64})

    elsewhere = await serve(stack, thief)

    async def worker(request):
        asked.append(request.path)
        if request.path == path:
            return web.Response(status=307, headers={"Location": elsewhere + request.path})
        return web.Response()

    await start_router(config_of(await serve(stack, worker)), trust=Trust.generate(), kv_events_plain=True)
    await until(lambda: asked.count(path) >= 1 and len(asked) >= 3)

    assert stolen == []


async def test_what_a_worker_gives_as_its_reason_makes_no_series(start_upstream, start_router, make_config):
    async def refuse(request, upstream):
        return web.Response(status=503, headers={"x-quire-reason": f"nonsense-{upstream.num_calls}"})

    workers = [await start_upstream(name, refuse) for name in "abc"]
    router = await start_router(make_config(*workers))
    await router.until_ready(3)

    async with router.post(BODY) as answer:
        status = answer.status
    async with router.get("/metrics") as answer:
        metrics = await answer.text()

    assert status == 503
    assert "nonsense" not in metrics
    assert 'retries_total{reason="other"} 2' in metrics


async def test_series_of_a_name_that_nobody_serves_any_more_go_away(start_upstream, start_router, make_config, until):
    worker = await start_upstream("a")
    config = make_config(worker)
    router = await start_router(config)
    await router.until_ready(1)
    async with router.post(BODY) as answer:
        await answer.read()

    async with router.get("/metrics") as answer:
        before = await answer.text()
    write_config(router.config_path, RouterConfig(models=[ModelEntry(name="n")], endpoints=[]))
    await until(lambda: router.app._pool.models == ("n",))
    async with router.get("/metrics") as answer:
        after = await answer.text()

    assert 'model="m"' in before
    assert 'model="m"' not in after
    assert 'model="n"' in after


@pytest.mark.parametrize("url", ["http://[::1", "http://h:99999", "http://h:x"])
async def test_an_address_that_is_none_is_refused_and_the_file_is_followed_on(
    start_upstream, start_router, make_config, until, logged, url
):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    router.config_path.write_bytes(encode_config(config_of(url)))
    await until(lambda: "configuration_refused" in logged())
    write_config(router.config_path, RouterConfig(models=[ModelEntry(name="n")], endpoints=[]))
    await until(lambda: router.app._pool.models == ("n",))


def test_a_weight_beyond_all_measure_is_refused():
    text = b'{"models":[],"endpoints":[],"services":[{"id":"a/b","weights":{"x":%s}}]}'

    for weight in (b"9" * 400, b"1000001"):
        with pytest.raises(RouterConfigError, match="weight"):
            decode_config(text % weight)


@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", "{", "[" * 200_000, '{"models":[{"name":"\\ud800"}],"endpoints":[]}', "\ufeff{}",
     encode_config(config_of("http://[::1")).decode(), '{"models":[],"endpoints":[],"version":1e400}'],
    ids=range(9),
)  # fmt: skip
def test_a_shard_of_garbage_keeps_its_last_good_content(content):
    good = encode_config(RouterConfig(models=[ModelEntry(name="m")], endpoints=[])).decode()
    meta = {"namespace": "home", "name": "r-router-config-0"}
    shards = Shards()

    for text in (good, content):
        shards.change("MODIFIED", {"metadata": meta, "data": {"router.json": text}})
    shards.replace(
        [{"metadata": meta, "data": {"router.json": content}}, {"metadata": {"name": "other"}, "data": None}]
    )

    assert [model.name for shard in shards.ordered for model in shard.models] == ["m"]


class FailingKeeper:
    """Fails once."""

    def __init__(self):
        self.applied = []

    def check(self, config, source):
        """Whatever decodes is right."""

    async def apply(self, config):
        self.applied.append(config)
        if len(self.applied) == 1:
            raise RuntimeError("a defect")


class ListedOnce:
    """An API server's client: one list, then silence."""

    async def list_pages(self, kind, namespace, selector, limit=500):
        shard = {
            "metadata": {"namespace": "home", "name": "r-router-config-0"},
            "data": {"router.json": encode_config(RouterConfig(models=[ModelEntry(name="m")], endpoints=[])).decode()},
        }
        yield ([shard] if kind.plural == "configmaps" else []), "1"

    async def watch(self, kind, namespace, version, selector, timeout_s):
        await asyncio.Event().wait()
        yield "", {}


async def test_a_configuration_that_could_not_be_applied_is_tried_again_without_news(until):
    keeper = FailingKeeper()
    source = KubernetesSource(ListedOnce(), keeper, release="r", home="home", namespaces=["home"], rng=random.Random(1))
    task = asyncio.create_task(source.run())

    await until(lambda: len(keeper.applied) >= 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_worker_that_has_been_down_for_long_is_probed_less_often():
    endpoint = Endpoint(EndpointEntry(id="e", url="http://127.0.0.1:9", models=["m"]), RevisionCounts())
    async with aiohttp.ClientSession() as session:
        prober = Prober(endpoint, session, reader=None, trust=None)
        first = prober._interval_s()
        prober._down_since_s -= 10
        later = prober._interval_s()
        prober._down_since_s -= 1000
        longest = prober._interval_s()
        endpoint.mark_ready()
        prober._interval_s()
        endpoint.mark_not_ready("again")

        assert first == prober._interval_s() == INTERVAL_DOWN_S
        assert later == pytest.approx(1.0, abs=0.1)
        assert longest == INTERVAL_DOWN_MOST_S


def test_metrics_of_a_name_may_go_though_it_was_never_asked_for():
    metrics = RouterMetrics()
    metrics.choices.labels("gone", "precise").inc()
    metrics.of_model("gone")

    metrics._forget({"gone"})

    assert b"gone" not in metrics.render()


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_a_header_that_nobody_could_write_costs_that_header_and_not_the_answer(
    start_upstream, start_router, make_config, kind
):
    body = b"data: [DONE]\n\n"

    async def answer(request, upstream):
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nX-Bad: a\x01\x7f\r\nX-Good: a\tb\r\nContent-Length: {len(body)}\r\n\r\n"
        request.transport.write(head.encode() + body)
        await asyncio.Event().wait()

    router = await start_router(make_config(await start_upstream("a", answer)))
    await router.until_ready(1)
    async with router.post({"model": "m", "prompt": "x"}) as answered:
        got = await answered.read()

    assert (answered.status, got) == (200, body)
    assert "X-Bad" not in answered.headers
    assert answered.headers["X-Good"] == "a\tb"
