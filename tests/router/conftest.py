"""Small real upstreams and a real router in the test's own event loop; sockets are real, only the workers' answers are made up."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tokenizers import Tokenizer, models, pre_tokenizers

from quire_contract.kube.access import KubeAccess
from quire_contract.prompt_bundle import PromptBundle
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.telemetry import LogFormatter
from quire_contract.trust import Trust
from quire_router.__main__ import running
from quire_router.config import RouterSettings

POLL_S = 0.005
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
VOCABULARY = ["<|unk|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", *(f"w{i}" for i in range(500))]

Behaviour = Callable[[web.BaseRequest, "Upstream"], Awaitable[web.StreamResponse]]


async def answer_json(request: web.BaseRequest, upstream: "Upstream") -> web.StreamResponse:
    return web.json_response({"from": upstream.id})


class Upstream:
    """An HTTP server on loopback that answers as it is told."""

    def __init__(self, upstream_id: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.id = upstream_id
        self.host = host
        self.behaviour: Behaviour = answer_json
        self.ready_status = 200
        self.is_stopped = False
        """Whether it takes connections and never answers a probe, as a process after SIGSTOP."""
        self.bundle: PromptBundle | None = None
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.num_abandoned = 0
        self.abandoned = asyncio.Event()
        self._runner: web.ServerRunner | None = None
        self.port = port

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def num_calls(self) -> int:
        return len(self.bodies)

    async def start(self) -> None:
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/ready":
            if self.is_stopped:
                await asyncio.Event().wait()
            return web.Response(status=self.ready_status)
        if request.path.startswith("/internal/prompt-bundle"):
            return self._give_bundle(request.path)
        self.bodies.append(await request.content.read())
        self.headers.append(request.headers)
        try:
            return await self.behaviour(request, self)
        except (asyncio.CancelledError, ConnectionError):  # as it waits, or as it writes
            self.num_abandoned += 1
            self.abandoned.set()
            raise

    def _give_bundle(self, path: str) -> web.StreamResponse:
        if self.bundle is None:
            return web.Response(status=404)
        if path == "/internal/prompt-bundle":
            return web.json_response({"digest": self.bundle.digest()})
        return web.Response(body=self.bundle.to_bytes())


class Router:
    """A running router and a client session for it."""

    def __init__(self, app: Any, url: str, session: aiohttp.ClientSession, config_path: Path) -> None:
        self.app = app
        self.url = url
        self.session = session
        self.config_path = config_path

    def post(self, body: dict[str, Any] | bytes, path: str = "/v1/completions", **options: Any) -> Any:
        data = {"data": io.BytesIO(body)} if isinstance(body, bytes) else {"json": body}
        return self.session.post(self.url + path, **data, **options)

    def get(self, path: str, **options: Any) -> Any:
        return self.session.get(self.url + path, **options)

    async def until_ready(self, number: int) -> None:
        """Wait until exactly `number` endpoints are ready."""
        await eventually(lambda: self.num_ready() == number)

    def num_ready(self) -> int:
        return sum(endpoint.ready for endpoint in self.app._pool)


async def eventually(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for a condition that the event loop's other tasks bring about."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions are about processes and sockets, nobody sets an event
            await asyncio.sleep(POLL_S)


def config_of(*upstreams: Upstream, model: str = "m") -> RouterConfig:
    return RouterConfig(
        models=[ModelEntry(name=model)],
        endpoints=[EndpointEntry(id=u.id, url=u.url, models=[model]) for u in upstreams],
    )


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    return eventually


@pytest.fixture
def make_config() -> Callable[..., RouterConfig]:
    return config_of


@pytest.fixture
async def start_upstream() -> AsyncIterator[Callable[..., Awaitable[Upstream]]]:
    started: list[Upstream] = []

    async def start(
        upstream_id: str, behaviour: Behaviour = answer_json, bundle: PromptBundle | None = None, **address: Any
    ) -> Upstream:
        upstream = Upstream(upstream_id, **address)
        upstream.behaviour = behaviour
        upstream.bundle = bundle
        await upstream.start()
        started.append(upstream)
        return upstream

    yield start
    for upstream in started:
        await upstream.stop()


@pytest.fixture
async def start_router(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Router]]]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            config: RouterConfig | None, trust: Trust | None = None, access: KubeAccess | None = None, **settings: Any
        ) -> Router:
            """From a file, or without `config` from the cluster of `access`."""
            path = tmp_path / "router.json"
            values = {"port": 0, "shutdown_timeout_s": 0.2, **settings}
            if config is not None:
                write_config(path, config)
                values["config"] = path
            app, url = await stack.enter_async_context(running(RouterSettings(**values), trust, access))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return Router(app, url, session, path)

        yield start


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights: a word is a token."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(VOCABULARY[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|end|>"}))
    return folder


@pytest.fixture(scope="session")
def bundle(model_dir: Path) -> PromptBundle:
    return PromptBundle.from_model_dir(model_dir, block_size=16, max_model_len=4096, served_model_names=["m"])


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """All log lines so far, as the process would print them."""
    caplog.set_level("INFO")
    formatter = LogFormatter()
    return lambda: "\n".join(formatter.format(record) for record in caplog.records)
