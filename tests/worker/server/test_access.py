"""Who may call what: API keys, the trust token, and internal headers."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from quire_contract.kv_events import kv_topic
from quire_contract.prompt import PromptRenderer
from quire_contract.prompt_bundle import PromptBundle, digest_of
from quire_contract.trust import Trust
from quire_worker.config import WorkerConfig
from quire_worker.server.access import Access
from quire_worker.server.engine_client import EngineClient
from quire_worker.server.metrics import Metrics
from quire_worker.server.private_folder import private_folder
from quire_worker.server.sleeping import Sleeping
from quire_worker.server.worker import Worker

OPEN = ("/health", "/ready", "/metrics")
GUARDED = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/version"),
    ("GET", "/load"),
    ("GET", "/kv_event_sources"),
    ("GET", "/internal/prompt-bundle"),
    ("GET", "/internal/prompt-bundle/0"),
    ("POST", "/internal/drain"),
    ("DELETE", "/internal/drain"),
    ("GET", "/no/such/path"),
)
BODY = {"model": "tiny", "prompt": "the quick brown fox jumps over the lazy dog " * 3, "max_tokens": 2}


@pytest.fixture(scope="module")
def keyed(launch_in_module: Callable[..., Any]) -> Any:
    return launch_in_module(
        "--served-model-name", "tiny", "--api-key", "first-key", "--api-key", "second-key"
    ).wait_until_ready()


@pytest.fixture(scope="module")
def trust_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    Trust.generate().write(folder)
    return folder


@pytest.fixture(scope="module")
def trusting(launch_in_module: Callable[..., Any], trust_dir: Path) -> Any:
    endpoints = ("--kv-events-endpoint", "tcp://127.0.0.1:*", "--kv-replay-endpoint", "tcp://127.0.0.1:*")
    return launch_in_module(
        "--served-model-name", "tiny", "--trust-dir", str(trust_dir), "--pod-name", "pod-1", *endpoints
    ).wait_until_ready()


@pytest.mark.parametrize("server", ["keyed", "trusting"])
async def test_every_route_but_health_ready_and_metrics_asks_for_a_key(
    http: aiohttp.ClientSession, request: pytest.FixtureRequest, server: str
) -> None:
    worker = request.getfixturevalue(server)

    for path in OPEN:
        async with http.get(worker.base + path) as response:
            assert response.status == 200, path
    for method, path in GUARDED:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic Zmlyc3Qta2V5"},
            {"x-quire-token": "wrong"},
        ):
            async with http.request(method, worker.base + path, headers=headers) as response:
                error = (await response.json())["error"]
            assert (response.status, error["code"]) == (401, "invalid_api_key"), (path, headers)
            assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("server", ["keyed", "trusting"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/no/such"])
async def test_anthropics_routes_ask_for_a_key_in_their_own_form(
    http: aiohttp.ClientSession, request: pytest.FixtureRequest, server: str, path: str
) -> None:
    worker = request.getfixturevalue(server)

    for headers in ({}, {"x-api-key": "wrong"}, {"Authorization": "Bearer wrong"}):
        async with http.post(worker.base + path, headers=headers) as response:
            body = await response.json()
        assert (response.status, body["type"], body["error"]["type"]) == (401, "error", "authentication_error")


@pytest.mark.parametrize("key", ["first-key", "second-key"])
async def test_any_of_the_keys_opens(keyed: Any, key: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{keyed.base}/v1", api_key=key) as client:
        answer = await client.completions.create(model="tiny", prompt="x", max_tokens=1)

    assert answer.usage is not None


async def test_keys_are_read_from_the_environment_and_never_logged(
    http: aiohttp.ClientSession, launch: Callable[..., Any]
) -> None:
    worker = launch("--served-model-name", "tiny", env={"QUIRE_API_KEY": "from-the-environment"}).wait_until_ready()

    without = await http.get(f"{worker.base}/v1/models")
    with_key = await http.get(f"{worker.base}/v1/models", headers={"Authorization": "Bearer from-the-environment"})

    assert (without.status, with_key.status) == (401, 200)
    assert "from-the-environment" not in worker.log


@pytest.mark.parametrize("header", ["x-quire-token", "Authorization"])
async def test_the_trust_token_opens(http: aiohttp.ClientSession, trusting: Any, trust_dir: Path, header: str) -> None:
    token = Trust.read(trust_dir).token
    headers = {header: token if header == "x-quire-token" else f"Bearer {token}"}

    response = await http.post(f"{trusting.base}/v1/completions", json=BODY, headers=headers)

    assert response.status == 200


async def cached(http: aiohttp.ClientSession, worker: Any, headers: dict[str, str]) -> int:
    async with http.post(f"{worker.base}/v1/completions", json=BODY, headers=headers) as response:
        usage = (await response.json())["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def test_a_cache_salt_header_counts_from_a_trusted_caller_only(
    http: aiohttp.ClientSession, trusting: Any, trust_dir: Path, keyed: Any
) -> None:
    token = {"x-quire-token": Trust.read(trust_dir).token}
    key = {"Authorization": "Bearer first-key"}

    trusted = [await cached(http, trusting, {**token, "x-quire-cache-salt": salt}) for salt in ("a", "b", "a")]
    untrusted = [await cached(http, keyed, {**key, "x-quire-cache-salt": salt}) for salt in ("a", "b")]

    assert trusted[0] == trusted[1] == 0
    assert trusted[2] > 0
    assert untrusted[1] > 0


async def test_the_prompt_bundle_is_served_under_its_digest(
    http: aiohttp.ClientSession, trusting: Any, trust_dir: Path
) -> None:
    headers = {"x-quire-token": Trust.read(trust_dir).token}

    async with http.get(f"{trusting.base}/internal/prompt-bundle", headers=headers) as response:
        named = await response.json()
    async with http.get(f"{trusting.base}/internal/prompt-bundle/{named['digest']}", headers=headers) as response:
        data = await response.read()
    async with http.get(f"{trusting.base}/internal/prompt-bundle/{'0' * 64}", headers=headers) as response:
        other = response.status
    async with http.post(f"{trusting.base}/tokenize", json={"prompt": "hello fox"}, headers=headers) as response:
        tokens = (await response.json())["tokens"]

    bundle = PromptBundle.from_bytes(data)
    assert digest_of(data) == named["digest"]
    assert (bundle.max_model_len, bundle.block_size) == (2048, 16)
    assert bundle.served_model_names == ["tiny"]
    assert PromptRenderer(bundle).completion("hello fox") == tokens
    assert other == 404


async def test_event_sources_are_named(http: aiohttp.ClientSession, trusting: Any, trust_dir: Path) -> None:
    headers = {"x-quire-token": Trust.read(trust_dir).token}

    async with http.get(f"{trusting.base}/kv_event_sources", headers=headers) as response:
        sources = await response.json()

    assert sources["events"].startswith("tcp://127.0.0.1:")
    assert sources["replay"].startswith("tcp://127.0.0.1:")
    assert sources["topic"] == kv_topic("pod-1", "tiny")
    assert (sources["pod"], sources["model"], sources["block_size"]) == ("pod-1", "tiny", 16)


def test_a_trust_folder_without_files_is_named(launch: Callable[..., Any], tmp_path: Path) -> None:
    worker = launch("--trust-dir", str(tmp_path))

    assert worker.wait() == 2
    assert f"--trust-dir: {tmp_path / 'token'}: missing" in worker.log


@pytest.mark.parametrize(
    ("api_keys", "peer", "allowed"),
    [
        ([], "127.0.0.1", True),
        ([], "::1", True),
        ([], "10.0.0.7", False),
        ([], None, False),
        (["key"], "10.0.0.7", False),
    ],
)
def test_a_worker_without_routers_is_drained_only_from_its_own_machine(
    api_keys: list[str], peer: str | None, allowed: bool
) -> None:
    access = Access(api_keys, trust=None)

    assert access.may_control(peer) is allowed


def test_listening_to_everybody_without_a_key_is_warned_of(launch: Callable[..., Any]) -> None:
    worker = launch("--host", "0.0.0.0").wait_until_ready()

    assert "set --api-key" in worker.log


async def test_no_route_of_the_application_is_open_but_health_ready_and_metrics(
    http: aiohttp.ClientSession, keyed: Any, model_dir: Path, tmp_path: Path
) -> None:
    config = WorkerConfig(model=model_dir, served_model_names=("tiny",), api_keys=("key",))
    with socket.create_server(("127.0.0.1", 0)) as listening, private_folder(tmp_path) as folder:
        worker = Worker(config, None, listening, "test")
        engine = EngineClient(folder, time.monotonic, lambda stats: None)
        metrics = Metrics("tiny", "test")
        serving, startup = worker._make_serving(engine, metrics), worker._startup(metrics)
        sleeping = Sleeping(serving, startup, lambda state: None)
        app = worker._application(serving, *worker._edge(serving, startup), sleeping)
        engine.close()
    routes = {
        (route.method, route.resource.canonical.replace("{name:.+}", "tiny").replace("{digest}", "0"))
        for route in app.router.routes()
        if route.resource is not None
    }

    answered = {}
    for method, path in routes:
        async with http.request(method, keyed.base + path) as response:
            answered[method, path] = response.status

    assert len(routes) > 12
    assert {path for (_, path), status in answered.items() if status != 401} == set(OPEN)
