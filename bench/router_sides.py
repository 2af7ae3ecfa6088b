"""What bench/router.py puts in front of the mock workers: our router, and its peers in virtual environments of their own."""

import contextlib
import hashlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import router_mock

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_tenants import TenantEntry, TenantKeyEntry, TenantLimitsEntry

START_TIMEOUT_S = 180.0
ROUTER_CORE = "0"
KEY = "sk-bench-0123456789abcdef0123456789abcdef"
PEERS = {"sglang": "sglang-router==0.3.2", "litellm": "litellm[proxy]"}
_NGINX = """
worker_processes 1;
daemon off;
pid %(folder)s/nginx.pid;
error_log %(folder)s/nginx.log;
events { worker_connections 8192; }
http {
  access_log off;
  client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy; fastcgi_temp_path %(folder)s/f;
  uwsgi_temp_path %(folder)s/u; scgi_temp_path %(folder)s/s;
  client_body_buffer_size 64k;
  keepalive_requests 1000000;
  upstream workers { %(servers)s keepalive 256; keepalive_requests 1000000; }
  server {
    listen 127.0.0.1:%(port)d backlog=4096;
    location / { proxy_pass http://workers; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }
  }
}
"""
_LITELLM = """
model_list:
%(models)s
general_settings: {master_key: %(key)s}
litellm_settings: {drop_params: true, num_retries: 0, callbacks: []}
"""


class MissingError(Exception):
    """A side cannot be measured here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Setting:
    """Where everything is."""

    mock_port: int
    num_workers: int
    folder: Path
    peers: Path
    """Where the peers' environments are, or are made."""
    install: bool
    """Whether to make them."""

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{self.mock_port + i}" for i in range(self.num_workers)]


@dataclass
class Side:
    """A process that runs, on ROUTER_CORE."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def pids(self) -> list[int]:
        """Its own and its children's."""
        return [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children(recursive=True))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quire(setting: Setting, port: int, *, config: RouterConfig | None = None) -> list[str]:
    path = setting.folder / f"router-{port}.json"
    write_config(path, config or quire_config(setting))
    return [str(Path(sys.executable).parent / "quire-router"), "--config", str(path), "--port", str(port)]


def quire_config(setting: Setting, **fields: object) -> RouterConfig:
    entries = [
        EndpointEntry(
            id=f"w{i}",
            url=url,
            models=[router_mock.MODEL],
            events=f"tcp://127.0.0.1:{setting.mock_port + 100 + 2 * i}",
            replay=f"tcp://127.0.0.1:{setting.mock_port + 101 + 2 * i}",
        )
        for i, url in enumerate(setting.urls)
    ]
    return RouterConfig(models=[ModelEntry(name=router_mock.MODEL)], endpoints=entries, **fields)  # type: ignore[arg-type]


def quire_tenants(setting: Setting, port: int) -> list[str]:
    """With keys, limits and usage: a tenant whose limits are never reached."""
    key = TenantKeyEntry(id="bench", sha256=hashlib.sha256(KEY.encode()).hexdigest())
    limits = TenantLimitsEntry(requests_per_minute=10**9, tokens_per_minute=10**12, max_concurrent_requests=10**6)
    tenant = TenantEntry(id="bench", keys=[key], limits=limits)
    return quire(setting, port, config=quire_config(setting, tenants=[tenant], require_tenant=True))


def nginx(setting: Setting, port: int) -> list[str]:
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        raise MissingError("nginx is not installed (Debian: apt-get install nginx-light)")
    servers = " ".join(f"server {url.removeprefix('http://')};" for url in setting.urls)
    path = setting.folder / "nginx.conf"
    path.write_text(_NGINX % {"folder": setting.folder, "servers": servers, "port": port})
    return [binary, "-c", str(path), "-e", str(setting.folder / "nginx.log")]


def sglang(setting: Setting, port: int) -> list[str]:
    python = _environment(setting, "sglang") / "python"
    command = [str(python), "-m", "sglang_router.launch_router", "--worker-urls", *setting.urls]
    command += ["--policy", "cache_aware", "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--prometheus-port", str(free_port()), "--log-level", "warn"]


def litellm(setting: Setting, port: int) -> list[str]:
    entry = "  - {model_name: %s, litellm_params: {model: openai/%s, api_base: %s/v1, api_key: none}}"
    models = [entry % (router_mock.MODEL, router_mock.MODEL, url) for url in setting.urls]
    path = setting.folder / "litellm.yaml"
    path.write_text(_LITELLM % {"models": "\n".join(models), "key": KEY})
    binary = _environment(setting, "litellm") / "litellm"
    return [str(binary), "--config", str(path), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


Command = Callable[[Setting, int], list[str]]
SIDES: dict[str, Command] = {
    "quire": quire,
    "quire, tenants": quire_tenants,
    "sglang": sglang,
    "nginx": nginx,
    "litellm": litellm,
}
HEADERS = {name: {"Authorization": f"Bearer {KEY}"} for name in ("quire, tenants", "litellm")}


def _environment(setting: Setting, name: str) -> Path:
    """The bin folder of a peer's virtual environment. MissingError if it is not there and may not be made."""
    folder = setting.peers / name
    if not (folder / ".made").exists():
        if not setting.install:
            how = f"python -m venv {folder} && {folder}/bin/pip install '{PEERS[name]}' && touch {folder}/.made"
            raise MissingError(f"{name} is not in {setting.peers}; make it with --install, or: {how}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", PEERS[name]], check=True)
        (folder / ".made").touch()
    return folder / "bin"


@contextlib.contextmanager
def running(name: str, setting: Setting) -> Iterator[Side]:
    """The side, answering. MissingError if it cannot be had here."""
    port = free_port()
    command = ["taskset", "-c", ROUTER_CORE, *SIDES[name](setting, port)]
    with (setting.folder / f"{name.replace(', ', '-')}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    side = Side(name, port, process, HEADERS.get(name, {}))
    try:
        wait_for(side)
        yield side
    finally:
        _stop(process)


def wait_for(side: Side) -> None:
    """Until it answers a chat with 200; for ours until it knows what the workers hold. MissingError if it ends or does not."""
    deadline = time.monotonic() + START_TIMEOUT_S
    data = b'{"model":"mock","messages":[{"role":"user","content":"hi"}]}'
    headers = {"Content-Type": "application/json", **side.headers}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and side.process.poll() is None:
        request = urllib.request.Request(f"http://127.0.0.1:{side.port}/v1/chat/completions", data, headers)
        with contextlib.suppress(urllib.error.URLError, OSError), opener.open(request, timeout=10) as answer:
            route = answer.headers.get("x-quire-route", "precise")
            if answer.status == 200 and route.startswith("precise"):
                return
        time.sleep(0.2)
    raise MissingError(f"{side.name} does not answer; see its log")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
