"""Spans of requests, as a real collector gets them; a collector that is away costs spans, never requests."""

import asyncio
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.worker.embedding_models import minilm

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "markedprompt"
BODY = {"model": "alias", "prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, "temperature": 0.5}


class Collector:
    """An OTLP/HTTP receiver; spans in the order they came."""

    def __init__(self) -> None:
        self.spans: queue.Queue[Any] = queue.Queue()
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {pair.key: pair.value.string_value for pair in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put((service, span))

    def next(self) -> tuple[Any, dict[str, Any]]:
        """The next span and its attributes."""
        service, span = self.spans.get(timeout=60)
        assert service == "quire-worker"
        return span, {pair.key: plain(pair.value) for pair in span.attributes}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(20)


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


async def complete(http: aiohttp.ClientSession, worker: Any, *, parent: str | None = None, **fields: Any) -> int:
    headers = {"X-Request-Id": "my-request"} | ({} if parent is None else {"traceparent": parent})
    async with http.post(f"{worker.base}/v1/completions", json={**BODY, **fields}, headers=headers) as response:
        await response.read()
        return response.status


async def test_a_request_continues_its_callers_trace_and_says_what_it_cost(
    http: aiohttp.ClientSession, launch: Callable[..., Any], collector: Collector
) -> None:
    worker = launch("--served-model-name", "tiny", "alias", "--otlp-endpoint", collector.url).wait_until_ready()

    await complete(http, worker, parent=f"00-{TRACE_ID}-{PARENT_ID}-01", stream=True, n=2)
    span, attributes = await asyncio.to_thread(collector.next)

    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.name == "POST /v1/completions"
    assert span.kind == span.SPAN_KIND_SERVER
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert attributes["gen_ai.provider.name"] == attributes["gen_ai.system"] == "quire"
    assert attributes["gen_ai.request.model"] == "alias"
    assert attributes["gen_ai.request.id"] == "my-request"
    assert attributes["gen_ai.request.max_tokens"] == 5
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.choice.count"] == 2
    assert attributes["gen_ai.usage.output_tokens"] == 10
    assert attributes["gen_ai.usage.input_tokens"] > 0
    assert attributes["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert attributes["http.response.status_code"] == 200
    assert 0 < attributes["gen_ai.server.time_to_first_token"] <= attributes["gen_ai.latency.e2e"]
    assert [event.name for event in span.events] == ["queued", "prefill started", "first token"]
    times = [event.time_unix_nano for event in span.events]
    assert times == sorted(times)
    assert times[-1] <= span.end_time_unix_nano


async def test_a_request_for_embeddings_says_what_it_cost(
    http: aiohttp.ClientSession, start_real: Callable[..., Any], collector: Collector
) -> None:
    flags = ("--device", "cpu", "--compute-threads", "1", "--otlp-endpoint", collector.url)
    worker = start_real(minilm(), "--served-model-name", "minilm", *flags).wait_until_ready()
    body = {"model": "minilm", "query": "food", "documents": ["bread", "a man"]}

    async with http.post(f"{worker.base}/v1/rerank", json=body, headers={"X-Request-Id": "mine"}) as response:
        tokens = (await response.json())["usage"]["total_tokens"]
    span, attributes = await asyncio.to_thread(collector.next)

    assert span.name == "POST /v1/rerank"
    assert attributes["gen_ai.operation.name"] == "embeddings"
    assert (attributes["gen_ai.request.model"], attributes["gen_ai.request.id"]) == ("minilm", "mine")
    assert attributes["gen_ai.usage.input_tokens"] == tokens > 0
    assert attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert attributes["gen_ai.latency.e2e"] > 0


async def test_without_a_parent_a_trace_begins_and_refusals_are_seen(
    http: aiohttp.ClientSession, launch: Callable[..., Any], collector: Collector, metric: Any, eventually: Any
) -> None:
    worker = launch("--otlp-endpoint", collector.url, "--api-key", "secret-key").wait_until_ready()

    status = await complete(http, worker)
    span, attributes = await asyncio.to_thread(collector.next)

    assert status == attributes["http.response.status_code"] == 401
    assert span.parent_span_id == b""
    await eventually(lambda: metric(worker, "quire_worker_spans_total", result="exported"), 1)
    assert collector.spans.empty(), "scrapes and probes make no spans"


async def test_spans_hold_no_prompt_no_output_and_no_key(
    http: aiohttp.ClientSession, launch: Callable[..., Any], collector: Collector
) -> None:
    worker = launch("--served-model-name", "alias", "--otlp-endpoint", collector.url).wait_until_ready()

    await complete(http, worker, user=PROMPT, stop=[PROMPT])
    await complete(http, worker, temperature=PROMPT)
    for _ in range(2):
        await asyncio.to_thread(collector.next)

    assert PROMPT.encode() not in collector.raw


async def test_the_callers_decision_counts_more_than_the_ratio(
    http: aiohttp.ClientSession, launch: Callable[..., Any], collector: Collector
) -> None:
    flags = ("--served-model-name", "alias", "--otlp-endpoint", collector.url)
    worker = launch(*flags, "--trace-sample-ratio", "0").wait_until_ready()

    await complete(http, worker)
    await complete(http, worker, parent=f"00-{'1' * 32}-{PARENT_ID}-00")
    await complete(http, worker, parent=f"00-{TRACE_ID}-{PARENT_ID}-01")
    span, _ = await asyncio.to_thread(collector.next)

    assert span.trace_id.hex() == TRACE_ID
    assert collector.spans.empty()


async def test_a_collector_that_is_away_costs_spans_only(
    http: aiohttp.ClientSession, launch: Callable[..., Any], metric: Any, collector: Collector
) -> None:
    collector.close()
    worker = launch(
        "--served-model-name", "alias", env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    ).wait_until_ready()

    statuses = [await complete(http, worker) for _ in range(5)]
    worker.process.terminate()
    code = await asyncio.to_thread(worker.wait)

    assert statuses == [200] * 5
    assert code == 0


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    code = "import sys, quire_worker.__main__; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
