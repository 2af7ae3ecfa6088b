"""What the pod of `helm test` runs, against a server that answers as a router does."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from .chart import Chart, one

MODELS = {"object": "list", "data": [{"id": "llama", "object": "model"}]}


class Router(ThreadingHTTPServer):
    """Answers /health and /v1/models, the second only to who has the key."""

    def __init__(self, models: dict[str, Any]) -> None:
        self.models = models
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One request to a Router."""

    def do_GET(self) -> None:
        """The name is http.server's."""
        assert isinstance(self.server, Router)
        known = self.path == "/health" or self.headers["Authorization"] == "Bearer key"
        body = json.dumps(self.server.models).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing is printed."""


@pytest.fixture
def serve() -> Iterator[Any]:
    """Starts a Router with such models."""
    servers: list[Router] = []

    def start(models: dict[str, Any]) -> str:
        server = Router(models)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server.url

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(chart: Chart, url: str, key: str) -> "subprocess.CompletedProcess[str]":
    pod = one(chart.render({"router": {"apiKeys": {"existingSecret": "keys"}}}), "Pod", "quire-test")
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python3", "-c"]
    assert {variable["name"] for variable in container["env"]} == {"ROUTER_URL", "QUIRE_API_KEY"}
    environment = {"ROUTER_URL": url, "QUIRE_API_KEY": key}
    return subprocess.run(
        [sys.executable, "-c", *container["args"]], env=environment, capture_output=True, text=True, check=False
    )


def test_it_passes_where_a_router_lists_its_models(chart: Chart, serve: Any) -> None:
    done = run(chart, serve(MODELS), "key")

    assert (done.returncode, done.stdout) == (0, "models: ['llama']\n"), done.stderr


def test_it_fails_without_the_key(chart: Chart, serve: Any) -> None:
    done = run(chart, serve(MODELS), "another")

    assert done.returncode != 0
    assert "401" in done.stderr


def test_it_fails_where_the_answer_is_not_openais(chart: Chart, serve: Any) -> None:
    done = run(chart, serve({"object": "error"}), "key")

    assert done.returncode != 0


def test_it_is_a_hook_that_goes_when_it_has_passed(chart: Chart) -> None:
    annotations = one(chart.render(), "Pod", "quire-test")["metadata"]["annotations"]

    assert annotations["helm.sh/hook"] == "test"
    assert "hook-succeeded" in annotations["helm.sh/hook-delete-policy"]
