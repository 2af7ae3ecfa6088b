"""The router on a cluster: a real API server with real pod objects, whose addresses are small workers on this machine's loopback."""

import asyncio
import contextlib
import dataclasses
import json
import random
import secrets
import signal
import subprocess
import sys
import time

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from cluster.forgotten import collect_forgotten_connections
from cluster.processes import free_ports

from quire_contract.kube.access import KubeAccess
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import CONFIG_MAP, NAMESPACE, POD
from quire_contract.router_config import ModelEntry, RouterConfig, ServiceEntry, encode_config
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry
from quire_router.kube_source import KubernetesSource

BODY = {"model": "m", "prompt": "hello"}
WORKER_PORT = 8000
POLL_S = 0.02
MAX_ROUNDS = 5
REFUSE_AT_ONCE = RouterSettingsEntry(admission=AdmissionSettings(no_endpoint_timeout_s=0))
"""Nobody waits for a first worker."""
SHARD = RouterConfig(models=[ModelEntry(name="m", service="HOME/svc")], endpoints=[], settings=REFUSE_AT_ONCE)


class Cluster:
    """Namespaces of one test, and the objects that operator and kubelet would write there."""

    def __init__(self, access, client):
        self.access = access
        self.client = client
        self.suffix = secrets.token_hex(5)
        self.release = f"rel-{self.suffix}"
        self.home = f"router-home-{self.suffix}"
        self.away = f"router-away-{self.suffix}"

    async def open(self):
        for name in (self.home, self.away):
            await self.client.create(NAMESPACE, None, {"metadata": {"name": name}})

    async def close(self):
        for name in (self.home, self.away):
            for document in (await self.client.list(POD, name))[0]:
                await self.client.merge_patch(
                    POD, name, document["metadata"]["name"], {"metadata": {"finalizers": None}}
                )
            await self.client.delete(NAMESPACE, None, name)

    async def put_shard(self, config, number=0):
        """As the operator writes it. "HOME" and "AWAY" in services' names become the namespaces."""
        text = encode_config(config).decode().replace("HOME/", f"{self.home}/").replace("AWAY/", f"{self.away}/")
        await self.put_text(text, number)

    async def put_text(self, text, number=0):
        name = f"{self.release}-router-config-{number}"
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"quire.dev/router-config": self.release}},
            "data": {"router.json": text},
        }
        await self.client.apply(CONFIG_MAP, self.home, name, body, field_manager="test")

    async def put_pod(self, name, address, namespace=None, revision="r1", served=("m",), service="svc"):
        """A pod that runs at `address`. It stays as terminating once it is deleted, until `forget_pod`."""
        namespace = namespace or self.home
        body = {
            "metadata": {
                "name": name,
                "finalizers": ["quire.dev/test"],
                "labels": {
                    "app.kubernetes.io/managed-by": "quire-operator",
                    "quire.dev/role": "worker",
                    "quire.dev/service": service,
                    "quire.dev/revision": revision,
                },
                "annotations": {"quire.dev/served-names": json.dumps(list(served))},
            },
            "spec": {
                "automountServiceAccountToken": False,
                "containers": [{"name": "worker", "image": "none"}],
            },
        }
        async with asyncio.timeout(120):
            while True:  # a new namespace refuses pods until its service account is there
                with contextlib.suppress(KubeError):
                    await self.client.create(POD, namespace, body)
                    break
                await asyncio.sleep(POLL_S)
        await self.set_status(name, namespace, podIP=address)

    async def set_status(self, name, namespace=None, phase="Running", **status):
        if "podIP" in status:
            status["podIPs"] = [{"ip": status["podIP"]}]
        body = {"status": {"phase": phase, **status}}
        await self.client.merge_patch(POD, namespace or self.home, name, body, subresource="status")

    async def delete_pod(self, name):
        await self.client.delete(POD, self.home, name)

    async def forget_pod(self, name):
        await self.client.merge_patch(POD, self.home, name, {"metadata": {"finalizers": None}})


class Wire:
    """A TCP proxy in front of the API server that can be cut and mended."""

    def __init__(self, host, port):
        self._target = host, port
        self._server = None
        self._writers = set()
        (self.port,) = free_ports(1)

    async def mend(self):
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    async def cut(self):
        """No new connections, and those there are break."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader, writer):
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        mine = {writer, there_writer}
        self._writers |= mine
        try:
            if self._server is None:
                return  # cut meanwhile
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            self._writers -= mine
            for one in mine:
                one.transport.abort()


async def _pump(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@pytest.fixture
async def cluster(control_plane):
    access = KubeAccess.from_kubeconfig(control_plane.kubeconfig)
    async with KubeClient(access, user_agent="quire-tests") as client:
        made = Cluster(access, client)
        await made.open()
        yield made
        await made.close()
    collect_forgotten_connections()


@pytest.fixture
async def wire(cluster):
    host, port = cluster.access.server.removeprefix("https://").rsplit(":", 1)
    made = Wire(host, int(port))
    await made.mend()
    yield made
    await made.cut()


@pytest.fixture
def start_worker(start_upstream):
    """A worker on a loopback address of its own, where pods' fixed port is free."""

    async def start(name, behaviour=None):
        for _ in range(20):
            address = f"127.{random.randint(64, 126)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
            with contextlib.suppress(OSError):
                options = {} if behaviour is None else {"behaviour": behaviour}
                return await start_upstream(name, host=address, port=WORKER_PORT, **options)
        raise AssertionError(f"port {WORKER_PORT} is taken on every address: something listens on all of them")

    return start


@pytest.fixture
def follow(start_router, cluster):
    """Starts a router that follows the cluster, through `wire` if one is given."""

    async def start(wire=None, **settings):
        access = cluster.access
        if wire is not None:
            access = dataclasses.replace(access, server=f"https://127.0.0.1:{wire.port}")
        values = {"release": cluster.release, "release_namespace": cluster.home, **settings}
        return await start_router(None, access=access, **values)

    return start


async def status_of(router, path="/ready"):
    async with router.get(path) as answer:
        return answer.status


async def ask(router, model="m"):
    """(status, worker) of a request."""
    async with router.post({**BODY, "model": model}) as answer:
        await answer.read()
        return answer.status, answer.headers.get("x-quire-worker")


async def until_status(router, model, expected, timeout_s=120):
    """Seconds until a request for the model gets the status."""
    started_s = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while (await ask(router, model))[0] != expected:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(POLL_S)
    return time.monotonic() - started_s


async def test_a_pod_and_a_shard_make_a_model_that_answers(cluster, follow, start_worker):
    worker = await start_worker("one")
    await cluster.put_shard(SHARD)
    await cluster.put_pod("one", worker.host)

    router = await follow()
    await router.until_ready(1)
    answer = await ask(router)
    (endpoint,) = router.app._pool

    assert answer == (200, "one")
    assert (endpoint.entry.service, endpoint.entry.revision) == (f"{cluster.home}/svc", "r1")
    assert endpoint.entry.events == f"tcp://{worker.host}:5557"


async def test_readiness_needs_the_configuration_and_no_worker(cluster, follow, until):
    router = await follow()
    await until(lambda: router.app._pool.is_configured)
    empty = await status_of(router), (await ask(router))[0]
    await cluster.put_shard(SHARD)
    await until(lambda: router.app._pool.models == ("m",))
    declared = await status_of(router), (await ask(router))[0]

    assert empty == (200, 404)
    assert declared == (200, 503)


async def test_changed_and_revoked_shards_are_obeyed_within_two_seconds(cluster, follow, start_worker):
    worker = await start_worker("one")
    await cluster.put_shard(SHARD)
    await cluster.put_pod("one", worker.host, served=("m", "n"))
    router = await follow()
    await router.until_ready(1)
    await until_status(router, "m", 200)

    both = RouterConfig(models=[*SHARD.models, ModelEntry(name="n", service="HOME/svc")], endpoints=[])
    best_s = [float("inf")] * 3
    for _ in range(MAX_ROUNDS):  # a machine that has other things to do may take longer now and then
        await cluster.put_shard(SHARD)
        await until_status(router, "m", 200)
        await cluster.put_shard(both)
        added_s = await until_status(router, "n", 200)
        await cluster.put_shard(SHARD)
        revoked_s = await until_status(router, "n", 404)
        await cluster.put_shard(SHARD, number=1)
        await cluster.client.delete(CONFIG_MAP, cluster.home, f"{cluster.release}-router-config-0")
        await cluster.client.delete(CONFIG_MAP, cluster.home, f"{cluster.release}-router-config-1")
        deleted_s = await until_status(router, "m", 404)
        best_s = [min(pair) for pair in zip(best_s, (added_s, revoked_s, deleted_s), strict=True)]
        if max(best_s) < 2:
            break

    print("added {:.3f} s, revoked {:.3f} s, deleted {:.3f} s".format(*best_s))
    assert max(best_s) < 2


async def test_weights_of_a_shard_decide_which_revision_answers(cluster, follow, start_worker, until):
    stable, canary = await start_worker("stable"), await start_worker("canary")
    split = RouterConfig(
        models=SHARD.models, endpoints=[], services=[ServiceEntry(id="HOME/svc", weights={"r1": 100, "r2": 0})]
    )
    await cluster.put_shard(split)
    await cluster.put_pod("stable", stable.host, revision="r1")
    await cluster.put_pod("canary", canary.host, revision="r2")
    router = await follow()
    await router.until_ready(2)

    before = {await ask(router) for _ in range(10)}
    moved = RouterConfig(models=SHARD.models, endpoints=[], services=[ServiceEntry(id="HOME/svc", weights={"r2": 1})])
    await cluster.put_shard(moved)
    await until(lambda: router.app._pool.weights("m") == {"r2": 1})
    after = {await ask(router) for _ in range(10)}

    assert (before, after) == ({(200, "stable")}, {(200, "canary")})


async def test_a_shard_that_cannot_be_used_keeps_its_last_good_content_and_holds_up_no_other(
    cluster, follow, until, logged
):
    await cluster.put_shard(SHARD)
    router = await follow()
    await until(lambda: router.app._pool.models == ("m",))

    await cluster.put_text('{"models": [], "endpoints": [], "modles": []}')
    await until(lambda: "configuration_refused" in logged())
    await cluster.put_shard(RouterConfig(models=[ModelEntry(name="n")], endpoints=[]), number=1)
    await until(lambda: router.app._pool.models == ("m", "n"))

    assert "modles" in logged()
    assert f"{cluster.release}-router-config-0" in logged()


async def test_a_terminating_pod_gets_nothing_new_and_finishes_what_it_runs(cluster, follow, start_worker, until):
    release = asyncio.Event()

    async def slow_stream(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await release.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    leaving, staying = await start_worker("leaving", slow_stream), await start_worker("staying")
    await cluster.put_shard(SHARD)
    await cluster.put_pod("leaving", leaving.host)
    router = await follow()
    await router.until_ready(1)
    stream = await router.post({**BODY, "stream": True})
    first = await stream.content.readany()

    await cluster.put_pod("staying", staying.host)
    await router.until_ready(2)
    await cluster.delete_pod("leaving")
    await until(lambda: router.app._pool.get("leaving") is None)
    others = {await ask(router) for _ in range(5)}
    await cluster.forget_pod("leaving")
    release.set()
    rest = await stream.read()

    assert others == {(200, "staying")}
    assert first + rest == b"data: one\n\ndata: [DONE]\n\n"
    assert leaving.num_calls == 1


async def test_a_pod_that_failed_or_moved_is_another_endpoint(cluster, follow, start_worker, until):
    first, second = await start_worker("first"), await start_worker("second")
    await cluster.put_shard(SHARD)
    await cluster.put_pod("one", first.host)
    router = await follow()
    await router.until_ready(1)
    before = router.app._pool.get("one")

    await cluster.set_status("one", phase="Failed")
    await until(lambda: len(router.app._pool) == 0)
    await cluster.put_pod("two", first.host)
    await router.until_ready(1)
    reused = router.app._pool.get("two")
    await cluster.put_pod("three", second.host)
    await router.until_ready(2)

    assert reused is not before
    assert not before.ready
    assert {endpoint.id for endpoint in router.app._pool} == {"two", "three"}


async def test_the_api_server_may_be_away_while_requests_go_on(cluster, wire, follow, start_worker, until):
    worker, late = await start_worker("one"), await start_worker("late")
    await cluster.put_shard(SHARD)
    await cluster.put_pod("one", worker.host)
    router = await follow(wire)
    await router.until_ready(1)
    endpoint = router.app._pool.get("one")

    await wire.cut()
    during = [await ask(router) for _ in range(20)]
    ready = await status_of(router)
    await cluster.put_pod("late", late.host)
    while_cut = {e.id for e in router.app._pool}
    await wire.mend()
    await until(lambda: router.app._pool.get("late") is not None)
    await router.until_ready(2)

    assert during == [(200, "one")] * 20
    assert ready == 200
    assert while_cut == {"one"}
    assert router.app._pool.get("one") is endpoint


async def test_a_router_that_starts_without_the_api_server_waits_and_refuses_for_now(
    cluster, wire, follow, start_worker, until
):
    worker = await start_worker("one")
    await cluster.put_shard(SHARD)
    await cluster.put_pod("one", worker.host)
    await wire.cut()

    router = await follow(wire)
    ready, healthy, models = [await status_of(router, path) for path in ("/ready", "/health", "/v1/models")]
    async with router.post(BODY) as answer:
        error = (await answer.json())["error"]
    await wire.mend()
    await until(lambda: router.app._pool.is_configured)
    await router.until_ready(1)
    later = await status_of(router), (await ask(router))

    assert (ready, healthy, models) == (503, 200, 503)
    assert (answer.status, error["code"]) == (503, "not_ready")
    assert later == (200, (200, "one"))


async def test_a_router_that_starts_without_the_api_server_serves_what_its_last_process_saved(
    cluster, wire, follow, start_worker, until, tmp_path
):
    first, second = await start_worker("one"), await start_worker("late")
    await cluster.put_shard(SHARD)
    await cluster.put_pod("one", first.host)
    saved = tmp_path / "router-config.json"
    before = await follow(wire, state_dir=tmp_path)
    await before.until_ready(1)
    await until(lambda: saved.exists() and first.host in saved.read_text())
    await wire.cut()

    after = await follow(wire, state_dir=tmp_path)
    await until(lambda: after.app._pool.is_configured)
    await after.until_ready(1)
    while_away = await ask(after), await metric(after, 'quire_router_config_state{state="saved"}')
    await cluster.put_pod("late", second.host)
    await wire.mend()
    await until(lambda: len(after.app._pool) == 2)
    digests = {await metric_line(router, "quire_router_config_info{") for router in (before, after)}

    assert while_away == ((200, "one"), 1.0)
    assert await metric(after, 'quire_router_config_state{state="live"}') == 1.0
    assert len(digests) == 1
    assert saved.stat().st_mode & 0o777 == 0o600


async def test_refused_shards_are_counted_until_they_are_mended(cluster, follow, until):
    await cluster.put_shard(SHARD)
    router = await follow()
    await until(lambda: router.app._pool.models == ("m",))

    await cluster.put_text('{"models": [], "endpoints": [], "settings": {"faults": {"max_resumes": -1}}}', number=1)
    await until_metric(router, "quire_router_config_refused_shards", 1.0)
    while_refused = await metric(router, "quire_router_config_refusals_total"), (await ask(router))[0]
    await cluster.put_text('{"models": [], "endpoints": [], "settings": {"faults": {"max_resumes": 1}}}', number=1)
    await until_metric(router, "quire_router_config_refused_shards", 0.0)

    assert while_refused == (1.0, 503)


async def metric_line(router, beginning):
    """The first line of /metrics that begins so."""
    async with router.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next((line for line in lines if line.startswith(beginning)), "")


async def metric(router, series):
    line = await metric_line(router, f"{series} ")
    return float(line.rpartition(" ")[2]) if line else None


async def until_metric(router, series, expected):
    async with asyncio.timeout(60):
        while await metric(router, series) != expected:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(POLL_S)


@pytest.mark.parametrize("all_namespaces", [False, True], ids=["named", "all"])
async def test_workers_of_several_namespaces_may_have_equal_names(cluster, follow, start_worker, all_namespaces):
    here, there = await start_worker("here"), await start_worker("there")
    models = [*SHARD.models, ModelEntry(name="n", service="AWAY/svc")]
    await cluster.put_shard(RouterConfig(models=models, endpoints=[]))
    await cluster.put_pod("pod", here.host)
    await cluster.put_pod("pod", there.host, namespace=cluster.away, served=("n", "m"))
    router = await follow(watch_namespaces=("*",) if all_namespaces else (cluster.home, cluster.away))
    await router.until_ready(2)

    assert await ask(router, "m") == (200, "pod")
    assert await ask(router, "n") == (200, f"{cluster.away}/pod")
    assert {e.entry.pod_name for e in router.app._pool} == {"pod"}


async def test_a_namespace_that_is_not_watched_serves_nothing(cluster, follow, start_worker, until):
    there = await start_worker("there")
    models = [ModelEntry(name="n", service="AWAY/svc")]
    await cluster.put_pod("pod", there.host, namespace=cluster.away, served=("n",))
    await cluster.put_shard(RouterConfig(models=models, endpoints=[], settings=REFUSE_AT_ONCE))

    router = await follow()
    await until(lambda: router.app._pool.models == ("n",))

    assert len(router.app._pool) == 0
    assert (await ask(router, "n"))[0] == 503


class Keeper:
    """Notes what is applied."""

    def __init__(self):
        self.applied = []

    def check(self, config, source):
        """Whatever decodes is right."""

    async def apply(self, config):
        self.applied.append(config)


@pytest.fixture
async def strict_api():
    """An API server that knows one model, lets pods be read in no namespace but "mine", and sends no events."""
    allowed = {"/api/v1/namespaces/mine/pods", "/api/v1/namespaces/home/configmaps"}
    shard = {
        "metadata": {"name": "r-router-config-0", "namespace": "home"},
        "data": {"router.json": encode_config(SHARD).decode()},
    }

    async def answer(request):
        if request.path not in allowed:
            return web.json_response({"kind": "Status", "reason": "Forbidden"}, status=403)
        if "watch" in request.query:
            await asyncio.Event().wait()
        items = [shard] if request.path.endswith("configmaps") else []
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})

    server = RawTestServer(answer, handler_cancellation=True)
    await server.start_server()
    access = KubeAccess(server=f"http://127.0.0.1:{server.port}", namespace="home")
    async with KubeClient(access, user_agent="quire-tests") as client:
        yield client
    await server.close()


async def run_source(client, namespaces, until_done):
    """What a source applied until `until_done(applied)`."""
    keeper = Keeper()
    source = KubernetesSource(
        client, keeper, release="r", home="home", namespaces=namespaces, rng=random.Random(1), patience_s=0.3
    )
    task = asyncio.create_task(source.run())
    try:
        await until_done(keeper.applied)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return keeper.applied


async def test_a_namespace_that_cannot_be_read_does_not_keep_the_rest_from_being_served(strict_api, until, logged):
    applied = await run_source(strict_api, ["mine", "deleted"], lambda applied: until(lambda: applied))

    assert [model.name for model in applied[0].models] == ["m"]
    assert "event=namespace_unread namespace=deleted" in logged()


async def test_a_router_that_may_read_no_namespace_never_counts_as_configured(strict_api, until, logged):
    applied = await run_source(
        strict_api, ["deleted"], lambda _: until(lambda: logged().count("GET /api/v1/namespaces/deleted/pods") >= 2)
    )

    assert applied == []


@pytest.fixture
def start_process(tmp_path):
    """Starts a module of ours as a process of its own."""
    processes = []

    def start(module, *flags):
        with (tmp_path / f"{module}.log").open("ab") as log:
            processes.append(subprocess.Popen([sys.executable, "-m", module, *flags], stdout=log, stderr=log))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


async def until_answer(session, url, condition, **request):
    """Ask until the answer's (status, body) is as wanted."""
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(aiohttp.ClientError, json.JSONDecodeError):
                async with session.request(request.get("method", "GET"), url, json=request.get("json")) as answer:
                    body = json.loads(await answer.read())
                    if condition(answer.status, body):
                        return body
            await asyncio.sleep(POLL_S)


async def test_the_process_follows_a_worker_of_another_namespace_and_serves_on_while_it_leaves(
    cluster, control_plane, start_process, model_dir, tmp_path
):
    address = f"127.{random.randint(64, 126)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
    start_process(
        *("quire_worker", "--fake", "--model", str(model_dir), "--served-model-name", "m", "--pod-name", "pod"),
        *("--host", address, "--port", "8000", "--disable-log-requests"),
        *("--kv-events-endpoint", f"tcp://{address}:5557", "--kv-replay-endpoint", f"tcp://{address}:5558"),
    )
    await cluster.put_shard(RouterConfig(models=[ModelEntry(name="m", service="AWAY/svc")], endpoints=[]))
    await cluster.put_pod("pod", address, namespace=cluster.away)
    (port,) = free_ports(1)
    router = start_process(
        *("quire_router", "--kubeconfig", str(control_plane.kubeconfig), "--release", cluster.release),
        *(
            "--release-namespace",
            cluster.home,
            "--watch-namespace",
            "*",
            "--port",
            str(port),
            "--shutdown-delay",
            "600",
        ),
    )
    url = f"http://127.0.0.1:{port}"

    async with aiohttp.ClientSession() as session:
        debug = await until_answer(
            session,
            url + "/debug/route",
            lambda _, body: [(e["ready"], e["events_in_step"]) for e in body["endpoints"]] == [(True, True)],
        )
        router.send_signal(signal.SIGTERM)
        await until_answer(session, url + "/ready", lambda status, body: status == 503)
        async with session.post(
            url + "/v1/completions", json={"model": "m", "prompt": "w1 w2", "max_tokens": 2}
        ) as answer:
            leaving = answer.status, answer.headers["x-quire-worker"], answer.headers["Connection"]
        router.send_signal(signal.SIGTERM)  # ends the delay
    code = await asyncio.to_thread(router.wait, 120)

    assert debug["endpoints"][0]["id"] == f"{cluster.away}/pod"
    assert leaving == (200, f"{cluster.away}/pod", "close")
    assert code == 0
    assert "event=stopped" in (tmp_path / "quire_router.log").read_text()
