"""A span for each request, if somebody collects them. This module knows what is told of a request; otel.py knows how it is sent.

Without a collector nothing of OpenTelemetry is imported and nothing is measured. Spans name models, counts and times; never prompts,
outputs, headers or keys.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry

from quire_worker.errors import ConfigError
from quire_worker.server.metrics import RequestRecord

if TYPE_CHECKING:
    from quire_worker.server.embedding_run import EmbeddingJob
    from quire_worker.server.generation import Job

Value = str | bool | int | float | Sequence[str]
PROVIDER = "quire"
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
}


class Span(Protocol):
    """One request."""

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Tell more of it."""
        ...

    def event(self, name: str, at_s: float) -> None:
        """Something happened, at `at_s` of the worker's clock."""
        ...

    def end(self, status: int) -> None:
        """It is over, with this HTTP status."""
        ...


class Tracing(Protocol):
    """Makes spans."""

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> Span:
        """A request that came with these headers, whose trace goes on."""
        ...

    def close(self) -> None:
        """Send what is left, in a moment or not at all."""
        ...


class NoSpan:
    """Says nothing."""

    def set(self, attributes: Mapping[str, Value]) -> None:
        pass

    def event(self, name: str, at_s: float) -> None:
        pass

    def end(self, status: int) -> None:
        pass


NO_SPAN = NoSpan()


class NoTracing:
    """Nobody collects."""

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> Span:
        del method, route, headers
        return NO_SPAN

    def close(self) -> None:
        pass


def make_tracing(
    endpoint: str | None, sample_ratio: float, *, version: str, registry: CollectorRegistry, clock: Callable[[], float]
) -> Tracing:
    """To the OTLP/HTTP collector at `endpoint`; None: nowhere. ConfigError if OpenTelemetry is not installed."""
    if endpoint is None:
        return NoTracing()
    try:
        from quire_worker.server.otel import OtelTracing
    except ImportError as error:
        raise ConfigError(f"--otlp-endpoint: needs {error.name}; pip install 'quire[otel]'") from None
    return OtelTracing(endpoint, sample_ratio, version=version, registry=registry, clock=clock)


def tell(span: Span, job: "Job", record: RequestRecord) -> None:
    """What is known of a generation at its end, by OpenTelemetry's conventions for generative AI; latencies by vLLM's names, too."""
    if span is NO_SPAN:
        return
    sampling = job.sampling[0]
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": _OPERATIONS.get(job.route, "text_completion"),
        "gen_ai.request.id": job.request_id,
        "gen_ai.request.max_tokens": record.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.choice.count": record.n,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.num_cached_tokens,
        "gen_ai.response.finish_reasons": record.finish_reasons,
        "gen_ai.latency.e2e": record.end_s,
    }
    if job.model:
        attributes |= {"gen_ai.request.model": job.model, "gen_ai.response.model": job.model}
    if record.queue_time_s is not None:
        attributes["gen_ai.latency.time_in_queue"] = record.queue_time_s
        span.event("queued", job.arrived_s)
        span.event("prefill started", job.arrived_s + record.queue_time_s)
    if record.first_token_s is not None:
        attributes["gen_ai.server.time_to_first_token"] = record.first_token_s
        attributes["gen_ai.latency.time_to_first_token"] = record.first_token_s
        span.event("first token", job.arrived_s + record.first_token_s)
    span.set(attributes)


def tell_embedded(span: Span, job: "EmbeddingJob", record: RequestRecord) -> None:
    """The same of a request for embeddings or scores."""
    span.set(
        {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.request.id": job.request_id,
            "gen_ai.request.model": job.model,
            "gen_ai.response.model": job.model,
            "gen_ai.usage.input_tokens": record.num_prompt_tokens,
            "gen_ai.response.finish_reasons": record.finish_reasons,
            "gen_ai.latency.e2e": record.end_s,
        }
    )
