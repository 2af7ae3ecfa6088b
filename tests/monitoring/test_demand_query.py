"""The query that KEDA and HPAs are given, evaluated by a real Prometheus over two real routers: one series, and right."""

import contextlib
import json
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from quire_contract.demand_report import demand_query
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, ServiceEntry, write_config
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry

from .conftest import MODEL, Prometheus, answers, free_ports, prometheus_over, running, scrape_job, until
from .programs import program

AWAKE, ASLEEP = "models/chat", "models/night"
START_TIMEOUT_S, DATA_TIMEOUT_S = 240.0, 180.0


class Requests:
    """Streams that stay open until the end."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._stop = threading.Event()

    def open(self, port: int, model: str, number: int) -> None:
        for _ in range(number):
            self._executor.submit(self._post, port, model)

    def stop(self) -> None:
        self._stop.set()

    def _post(self, port: int, model: str) -> None:
        body = {"model": model, "prompt": "The pages of a quire", "max_tokens": 240, "stream": True, "ignore_eos": True}
        url = f"http://127.0.0.1:{port}/v1/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=DATA_TIMEOUT_S) as answer:
            while not self._stop.is_set() and answer.readline():
                pass


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, list[int]]]:
    """A Prometheus over two routers with one worker that takes its time, and a model that sleeps; the routers' ports."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("demand")
    port, events, replay, *router_ports = free_ports(5)
    entry = EndpointEntry(
        id="worker-0",
        url=f"http://127.0.0.1:{port}",
        models=["chat"],
        service=AWAKE,
        events=f"tcp://127.0.0.1:{events}",
        replay=f"tcp://127.0.0.1:{replay}",
    )
    config = RouterConfig(
        models=[ModelEntry(name="chat", service=AWAKE), ModelEntry(name="night", service=ASLEEP)],
        services=[ServiceEntry(id=AWAKE), ServiceEntry(id=ASLEEP)],
        endpoints=[entry],
        settings=RouterSettingsEntry(admission=AdmissionSettings(no_endpoint_timeout_s=DATA_TIMEOUT_S)),
    )
    write_config(folder / "router.json", config)
    with contextlib.ExitStack() as stack:
        flags = ["--served-model-name", "chat", "--port", str(port), "--pod-name", "worker-0"]
        flags += ["--kv-events-endpoint", entry.events, "--kv-replay-endpoint", entry.replay]
        flags += ["--fake-decode-s-per-step", "1.0"]
        command = [sys.executable, "-m", "quire_worker", "--fake", "--model", str(MODEL), *flags]
        stack.enter_context(running(folder / "worker.log", *command))
        for index, own in enumerate(router_ports):
            command = [
                sys.executable,
                "-m",
                "quire_router",
                "--config",
                str(folder / "router.json"),
                "--port",
                str(own),
            ]
            stack.enter_context(running(folder / f"router-{index}.log", *command))
        jobs = [scrape_job("router", {f"router-{index}": own for index, own in enumerate(router_ports)})]
        found = stack.enter_context(prometheus_over(folder, jobs))
        for own in router_ports:
            until(lambda own=own: answers(f"http://127.0.0.1:{own}/ready"), "router", START_TIMEOUT_S)  # type: ignore[misc]
        ready = 'sum(quire_router_endpoints{state="ready"}) == 2'
        until(lambda: found.samples(ready), "worker that both routers know", START_TIMEOUT_S)
        yield found, router_ports


@pytest.mark.slow
def test_one_series_says_what_two_routers_hold_and_counts_what_both_were_told_once(
    routers: tuple[Prometheus, list[int]], streams: Requests
) -> None:
    prometheus, (first, second) = routers
    for service in (AWAKE, ASLEEP):
        until(lambda service=service: prometheus.samples(demand_query(service)), f"demand of {service}", DATA_TIMEOUT_S)  # type: ignore[misc]
        assert values(prometheus, service) == [0.0]

    streams.open(first, "chat", 2)
    streams.open(second, "chat", 1)
    streams.open(first, "night", 2)
    streams.open(second, "night", 3)

    until(lambda: values(prometheus, AWAKE) == [3.0], "demand of the worker's requests", DATA_TIMEOUT_S)
    until(lambda: values(prometheus, ASLEEP) == [5.0], "demand of the held requests", DATA_TIMEOUT_S)
    until(
        lambda: len(prometheus.samples("quire_router_demand_worker_requests")) == 4,
        "what both were told",
        DATA_TIMEOUT_S,
    )
    assert prometheus.samples(demand_query("models/nobody")) == []


def values(prometheus: Prometheus, service: str) -> list[float]:
    """Of every series that the query gives."""
    return [float(sample["value"][1]) for sample in prometheus.samples(demand_query(service))]


@pytest.fixture
def streams() -> Iterator[Requests]:
    """Requests that end with the test."""
    with ThreadPoolExecutor(8) as executor:
        requests = Requests(executor)
        try:
            yield requests
        finally:
            requests.stop()
