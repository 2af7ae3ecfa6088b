"""A real Prometheus that scrapes real workers and a real router under a little load, with the labels that a PodMonitor gives to targets.

`programs` says where Prometheus comes from, and what becomes of these tests without it.
"""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.processes import free_ports
from prometheus_client import generate_latest

from quire_contract import names
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import AdmissionSettings, FilterEntry, RouterSettingsEntry
from quire_contract.router_tenants import TenantEntry, TenantKeyEntry
from quire_operator.metrics import Metrics

from .programs import program

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "charts" / "quire" / "rules").glob("*.yaml"))
DASHBOARDS = sorted((ROOT / "charts" / "quire" / "dashboards").glob("*.json"))
MODEL = ROOT / "examples" / "models" / "quire-demo"
SERVED, NOWHERE = "quire-demo", "nowhere"
"""A model with two workers, and one that is declared but has none: its requests fail."""
TENANT_KEY, ADMIN_TOKEN = "a tenant's key of these tests", "an admin token of these tests"
START_TIMEOUT_S = 240.0
DATA_TIMEOUT_S = 180.0
POLL_S = 0.1


@pytest.fixture(scope="session")
def promtool() -> str:
    return program("promtool")


def until(condition: Callable[[], Any], what: str, timeout_s: float) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} after {timeout_s:g} s"
        pause.wait(POLL_S)
    return value


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status == 200
    except (OSError, http.client.HTTPException):
        return False


@contextlib.contextmanager
def running(log: Path, *command: str) -> Iterator[None]:
    """A process group that is gone afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class OperatorMetrics:
    """The operator's own metrics as a busy one would have them: no operator runs here, as there is no cluster to work on."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self._metrics.leader.set(1)
        self._metrics.services.labels("true").set(1)
        self._metrics.services.labels("false").set(0)
        self._metrics.show_scaling("models/quire-demo", demand=1, age_s=0.1, desired=1)

    def render(self) -> bytes:
        """The exposition, after some more work."""
        metrics = self._metrics
        metrics.reconciles.labels("success").inc()
        metrics.reconcile_seconds.labels("InferenceService").observe(0.02)
        metrics.applies.labels("Deployment").inc()
        metrics.prunes.labels("Deployment").inc()
        metrics.skipped_applies.inc()
        metrics.scalings.labels("up", "AboveTarget").inc()
        metrics.api_requests.labels("PATCH", "Deployment", "200").inc()
        return generate_latest(metrics.registry)


class OperatorPage(BaseHTTPRequestHandler):
    """Serves /metrics of an operator."""

    metrics: OperatorMetrics

    def do_GET(self) -> None:
        body = self.metrics.render()
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Quiet."""


@contextlib.contextmanager
def operator_page() -> Iterator[int]:
    """The port of a stand-in operator's metrics."""
    page = type("Page", (OperatorPage,), {"metrics": OperatorMetrics()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Prometheus:
    """A running Prometheus."""

    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path: str, **params: str) -> Any:
        """The `data` of an answer of its API. AssertionError with its words if it refuses."""
        try:
            with urllib.request.urlopen(
                f"{self.base}/api/v1/{path}?{urllib.parse.urlencode(params)}", timeout=120
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{params}: {error.read().decode()}") from None

    def samples(self, query: str) -> list[dict[str, Any]]:
        """The samples of a query now that are numbers."""
        return [sample for sample in self.get("query", query=query)["result"] if sample["value"][1] != "NaN"]


class Load:
    """Requests to the router until told to stop: streamed and whole, with shared prefixes, and some to the model without workers."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._stop = threading.Event()
        self.statuses: set[int] = set()

    def run(self) -> None:
        number = 0
        while not self._stop.wait(0.02):
            number += 1
            self._post(SERVED, number)
            self._post(NOWHERE, number)

    def stop(self) -> None:
        self._stop.set()

    def _post(self, model: str, number: int) -> None:
        prompt = f"{'The pages of a quire are folded together. ' * 20} Question {number}?"
        body = {"model": model, "prompt": prompt, "max_tokens": 12, "stream": number % 2 == 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"{self._base}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {TENANT_KEY}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                answer.read()
                self.statuses.add(answer.status)
        except urllib.error.HTTPError as error:
            error.read()
            self.statuses.add(error.code)


def scrape_job(kind: str, targets: dict[str, int]) -> dict[str, Any]:
    """A job whose targets carry the labels that the Prometheus operator adds; `endpoint` is one of them, so ours may not be relied on."""
    return {
        "job_name": f"quire/{kind}",
        "relabel_configs": [{"action": "labeldrop", "regex": "service"}],  # as the chart's ServiceMonitors have it
        "static_configs": [
            {
                "targets": [f"127.0.0.1:{port}"],
                "labels": {
                    "namespace": "models",
                    "pod": pod,
                    "container": kind,
                    "endpoint": "http",
                    "service": "quire",
                },
            }
            for pod, port in targets.items()
        ],
    }


@contextlib.contextmanager
def prometheus_over(folder: Path, jobs: list[dict[str, Any]]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes and evaluates our rules every second."""
    (port,) = free_ports(1)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(folder / "prometheus.log", *command):
        base = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{base}/-/ready"), "Prometheus", START_TIMEOUT_S)
        yield Prometheus(base)


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after it has seen some load; the load goes on."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("monitoring")
    entries, ports = [], {}
    with contextlib.ExitStack() as stack:
        for number in range(2):
            port, events, replay = free_ports(3)
            pod = f"worker-{number}"
            entry = EndpointEntry(
                id=pod,
                url=f"http://127.0.0.1:{port}",
                models=[SERVED],
                service=f"models/{SERVED}",
                events=f"tcp://127.0.0.1:{events}",
                replay=f"tcp://127.0.0.1:{replay}",
            )
            flags = ["--served-model-name", SERVED, "--port", str(port), "--pod-name", pod]
            flags += ["--kv-events-endpoint", entry.events, "--kv-replay-endpoint", entry.replay]
            flags += ["--fake-decode-s-per-step", "0.002"]
            command = [sys.executable, "-m", "quire_worker", "--fake", "--model", str(MODEL), *flags]
            stack.enter_context(running(folder / f"{pod}.log", *command))
            entries.append(entry)
            ports[pod] = port
        config = folder / "router.json"
        digest = hashlib.sha256(TENANT_KEY.encode()).hexdigest()
        write_config(
            config,
            RouterConfig(
                models=[ModelEntry(name=name, service=f"models/{name}") for name in (SERVED, NOWHERE)],
                endpoints=entries,
                tenants=[TenantEntry(id="models/acme", keys=[TenantKeyEntry(id="k", sha256=digest)])],
                settings=RouterSettingsEntry(
                    admission=AdmissionSettings(no_endpoint_timeout_s=0),
                    filters=[FilterEntry(name="folds", words=["folded"], action="flag")],
                ),
            ),
        )
        router_port, admin_port = free_ports(2)
        token = folder / "admin-token"
        token.write_text(ADMIN_TOKEN)
        command = [sys.executable, "-m", "quire_router", "--config", str(config), "--port", str(router_port)]
        command += ["--admin-port", str(admin_port), "--admin-token-file", str(token)]
        stack.enter_context(running(folder / "router.log", *command))
        operator_port = stack.enter_context(operator_page())
        base = f"http://127.0.0.1:{router_port}"
        jobs = [
            scrape_job("worker", ports),
            scrape_job("router", {"router-0": router_port}),
            scrape_job("operator", {"operator-0": operator_port}),
            {
                **scrape_job("router-admin", {"router-0": admin_port}),
                "authorization": {"credentials": ADMIN_TOKEN},
                "metric_relabel_configs": [
                    {"source_labels": ["__name__"], "regex": "quire_router_tenant_.*", "action": "keep"}
                ],
            },
        ]
        found = stack.enter_context(prometheus_over(folder, jobs))
        ready = f'sum(quire_router_endpoints{{state="ready"}}) == {len(entries)}'
        until(lambda: found.samples(ready), "router with ready workers", START_TIMEOUT_S)
        load = Load(base)
        executor = stack.enter_context(ThreadPoolExecutor(1))
        executor.submit(load.run)
        stack.callback(load.stop)
        until(lambda: {200, 503} <= load.statuses, "answer of each kind", DATA_TIMEOUT_S)
        seen = f'rate({names.QUIRE_ROUTER_REQUESTS}{{model="{SERVED}", code="200"}}[30s]) > 0'
        until(lambda: found.samples(seen), "rate of requests", DATA_TIMEOUT_S)
        yield found
