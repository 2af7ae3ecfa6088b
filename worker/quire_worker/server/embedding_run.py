"""One HTTP request's inputs in the engine: submitted, followed to their end, dropped if the client leaves, counted and logged.

Knows neither JSON nor HTTP.
"""

import dataclasses
import logging
from collections.abc import Callable

import msgspec

from quire_contract.openai.errors import ApiError
from quire_contract.telemetry import log_event
from quire_worker.embedding import Embed
from quire_worker.engine.messages import Rejected
from quire_worker.server.engine_client import EngineClient, EngineDeadError
from quire_worker.server.failures import Failures
from quire_worker.server.metrics import Metrics, RequestRecord
from quire_worker.server.tracing import NO_SPAN, Span, tell_embedded
from quire_worker.server.urgency import left

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingJob:
    """What one HTTP request asks of the engine, complete and checked."""

    request_id: str
    """For logs; `embed` has one that is unique in this process."""
    route: str
    arrived_s: float
    """By the clock that `run_job` is given."""
    embed: Embed
    """Its times are seconds since the request arrived."""
    log: bool
    model: str
    """As the client called it."""
    span: Span = NO_SPAN

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.embed.inputs))


async def run_job(job: EmbeddingJob, engine: EngineClient, metrics: Metrics, clock: Callable[[], float]) -> list[bytes]:
    """Each input's vector, little-endian float32. ApiError if the engine refuses or fails the request, EngineDeadError if it dies."""
    reason = "abort"
    try:
        failures = Failures(engine, metrics, clock, job.request_id, arrived_s=job.arrived_s)
        vectors = await _follow(job, engine, failures)
        reason = "stop"
        return vectors
    except (ApiError, EngineDeadError):
        reason = "error"
        raise
    finally:
        _record(job, reason, metrics, clock() - job.arrived_s)


async def _follow(job: EmbeddingJob, engine: EngineClient, failures: Failures) -> list[bytes]:
    found: dict[int, bytes] = {}
    spent_s = failures.spent_s(job.embed.timeout_s)
    embed = msgspec.structs.replace(
        job.embed,
        timeout_s=left(job.embed.timeout_s, spent_s),
        queue_timeout_s=left(job.embed.queue_timeout_s, spent_s),
    )
    with engine.generating([embed]) as mailbox:
        while len(found) < job.embed.n:
            for mail in await mailbox.take():
                item = mail.item
                if isinstance(item, Rejected):
                    raise failures.of_rejected(item)
                if item.embedding is None:
                    raise failures.error_of(item)
                found[item.choice] = item.embedding
    return [found[index] for index in range(job.embed.n)]


def _record(job: EmbeddingJob, reason: str, metrics: Metrics, end_s: float) -> None:
    num_tokens = job.num_tokens
    metrics.on_embedded(num_inputs=job.embed.n)
    record = RequestRecord(
        num_prompt_tokens=num_tokens,
        num_cached_tokens=0,
        num_generated_tokens=0,
        n=1,
        max_tokens=0,
        first_token_s=None,
        queue_time_s=None,
        end_s=end_s,
        finish_reasons=(reason,),
    )
    metrics.on_finished(record)
    tell_embedded(job.span, job, record)
    if job.log:
        log_event(
            _log,
            logging.INFO,
            "request finished",
            request_id=job.request_id,
            route=job.route,
            finish=reason,
            inputs=job.embed.n,
            prompt_tokens=num_tokens,
            total_ms=round(end_s * 1e3, 1),
        )
