"""Spans by OpenTelemetry, sent as OTLP over HTTP by a thread. Imported only where spans are collected.

    request ── ends ──> bounded queue ── batches, once a second ──> collector
                          full: dropped and counted

A collector that is slow or away costs spans, never requests.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as ApiSpan
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, Counter

from quire_worker.server.tracing import NO_SPAN, PROVIDER, Value
from quire_worker.server.tracing import Span as RequestSpan

_MAX_WAITING = 2048
_BATCH = 512
_DELAY_MS = 1000.0
_EXPORT_TIMEOUT_S = 5.0
_CLOSE_S = 1.0
_SERVER_ERROR = 500
_CLIENT_LEFT = 499
_TRACE_HEADERS = ("traceparent", "tracestate")


class OtelTracing:
    """Makes spans that continue their callers' traces."""

    def __init__(
        self,
        endpoint: str,
        sample_ratio: float,
        *,
        version: str,
        registry: CollectorRegistry,
        clock: Callable[[], float],
    ) -> None:
        """`endpoint` is the collector's base URL; `clock` the worker's, in seconds."""
        self._clock = clock
        counter = Counter("quire_worker_spans_total", "Spans by what became of them.", ("result",), registry=registry)
        queue = _Queue({result: counter.labels(result) for result in ("exported", "failed", "dropped")})
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
        batches = BatchSpanProcessor(
            _CountingExporter(exporter, queue), _MAX_WAITING, _DELAY_MS, _BATCH, _EXPORT_TIMEOUT_S * 1000
        )
        resource = Resource.create({"service.name": "quire-worker", "service.version": version})
        sampler = ParentBased(TraceIdRatioBased(sample_ratio))
        self._provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        self._provider.add_span_processor(_BoundedProcessor(batches, queue))
        self._tracer = self._provider.get_tracer("quire_worker", version)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> RequestSpan:
        """See tracing.Tracing. What is not sampled costs nothing further."""
        carrier = {name: headers[name] for name in _TRACE_HEADERS if name in headers}
        attributes = {
            "http.request.method": method, "http.route": route, "gen_ai.provider.name": PROVIDER, "gen_ai.system": PROVIDER,
        }  # fmt: skip
        span = self._tracer.start_span(
            f"{method} {route}", self._propagator.extract(carrier), SpanKind.SERVER, attributes
        )
        return _OtelSpan(span, self._clock) if span.is_recording() else NO_SPAN

    def close(self) -> None:
        """See tracing.Tracing."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans-end", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


class _OtelSpan:
    """A request's span; events are told in the worker's clock."""

    def __init__(self, span: ApiSpan, clock: Callable[[], float]) -> None:
        self._span = span
        self._offset_ns = time.time_ns() - int(clock() * 1e9)

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, at_s: float) -> None:
        self._span.add_event(name, timestamp=self._offset_ns + int(at_s * 1e9))

    def end(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        if status >= _SERVER_ERROR or status == _CLIENT_LEFT:
            self._span.set_attribute("error.type", str(status))
        if status >= _SERVER_ERROR:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _Queue:
    """Counts spans that wait, and what became of the others. Used by the event loop and the exporting thread."""

    def __init__(self, results: Mapping[str, Counter]) -> None:
        self._results = results
        self._num_waiting = 0
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Whether there is room for one more."""
        with self._lock:
            if self._num_waiting >= _MAX_WAITING:
                self._results["dropped"].inc()
                return False
            self._num_waiting += 1
            return True

    def leave(self, num_spans: int, result: str) -> None:
        with self._lock:
            self._num_waiting -= num_spans
        self._results[result].inc(num_spans)


class _BoundedProcessor(SpanProcessor):
    """The SDK's processor drops the oldest span without counting; this one never gives it too many."""

    def __init__(self, inner: BatchSpanProcessor, queue: _Queue) -> None:
        self._inner = inner
        self._queue = queue

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        if self._queue.enter():
            self._inner.on_end(span)

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _CountingExporter(SpanExporter):
    def __init__(self, inner: SpanExporter, queue: _Queue) -> None:
        self._inner = inner
        self._queue = queue

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self._queue.leave(len(spans), "exported" if result is SpanExportResult.SUCCESS else "failed")
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)
