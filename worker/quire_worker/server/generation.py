"""One HTTP request's generation: submitted, followed to its end, aborted if left early, counted and logged.

Knows neither JSON nor HTTP; it is the same for chats and completions, streamed or not.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from quire_contract.openai.errors import ApiError
from quire_contract.prompt import TokenStream
from quire_contract.telemetry import log_event
from quire_worker.engine.messages import ChoiceOutput, Rejected, Submit
from quire_worker.request import SamplingParams
from quire_worker.server import errors
from quire_worker.server.choice import Choice, Piece
from quire_worker.server.engine_client import EngineClient, EngineDeadError
from quire_worker.server.mailbox import Mail, Mailbox
from quire_worker.server.metrics import Metrics, RequestRecord
from quire_worker.server.tracing import NO_SPAN, Span, tell

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one HTTP request asks of the engine, complete and checked."""

    request_id: str
    """For logs."""
    engine_id: str
    """Unique in this process; prompt i is submitted as `<engine_id>-<i>`."""
    route: str
    arrived_s: float
    """By the clock that `Generation` is given."""
    prompts: Sequence[list[int]]
    sampling: Sequence[SamplingParams]
    """Parallel to prompts."""
    n: int
    """Choices for each prompt; choice j of prompt i has index i * n + j."""
    stops: Sequence[str] = ()
    include_stop: bool = False
    cache_salt: str | None = None
    priority: int = 0
    log: bool = True
    model: str = ""
    """As the client called it."""
    span: Span = NO_SPAN


Arrived = tuple[int, Piece]
"""Index of a choice in the answer, and what it got."""


class _Track:
    """A choice that the engine computes, and the indices in the answer that show it."""

    def __init__(self, choice: Choice, indices: range) -> None:
        self.choice = choice
        self.indices = indices
        self.last_token_s: float | None = None


class Generation:
    """Enter it to submit; take `next` until `done`; leaving it aborts what has not ended."""

    def __init__(
        self,
        job: Job,
        engine: EngineClient,
        metrics: Metrics,
        clock: Callable[[], float],
        new_detokeniser: Callable[[Sequence[int]], TokenStream],
    ) -> None:
        self._job = job
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        # Greedy choices are all the same: compute one, show it n times.
        greedy = job.sampling[0].temperature == 0
        self._engine_n = 1 if greedy else job.n
        self._tracks: dict[tuple[str, int], _Track] = {}
        for prompt, sampling in enumerate(job.sampling):
            for choice in range(self._engine_n):
                first = prompt * job.n + choice
                indices = range(first, first + (job.n if greedy else 1))
                made = Choice(
                    new_detokeniser(job.prompts[prompt]),
                    job.stops,
                    include_stop=job.include_stop,
                    min_tokens=sampling.min_tokens,
                    stop_token_ids=sampling.stop_token_ids,
                )
                self._tracks[self._id(prompt), choice] = _Track(made, indices)
        self._num_open = len(self._tracks)
        self.num_prompt_tokens = sum(map(len, job.prompts))
        self._cached: dict[str, int] = {}
        self._first_token_s: float | None = None
        self._queue_time_s: float | None = None
        self._failed = False
        self._inbox: AbstractContextManager[Mailbox] | None = None
        self._mailbox: Mailbox | None = None

    def _id(self, prompt: int) -> str:
        return f"{self._job.engine_id}-{prompt}"

    def __enter__(self) -> "Generation":
        job = self._job
        submits = [
            Submit(
                request_id=self._id(index),
                prompt_token_ids=prompt,
                sampling=job.sampling[index],
                n=self._engine_n,
                cache_salt=job.cache_salt,
                priority=job.priority,
            )
            for index, prompt in enumerate(job.prompts)
        ]
        self._inbox = self._engine.generating(submits)
        self._mailbox = self._inbox.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._inbox is not None
        self._inbox.__exit__(None, None, None)
        self._record()

    @property
    def done(self) -> bool:
        """Every choice has its finish reason."""
        return self._num_open == 0

    @property
    def num_cached_tokens(self) -> int:
        return sum(self._cached.values())

    @property
    def num_generated_tokens(self) -> int:
        """Over all choices of the answer."""
        return sum(track.choice.num_tokens * len(track.indices) for track in self._tracks.values())

    async def next(self) -> list[Arrived]:
        """Wait for tokens; the pieces of all choices that got some, never empty ones.

        Raises ApiError if the engine refuses or fails the request, EngineDeadError if it dies.
        """
        assert self._mailbox is not None, "enter first"
        arrived: list[Arrived] = []
        try:
            while not arrived:
                for mail in await self._mailbox.take():
                    self._take(mail, arrived)
        except (ApiError, EngineDeadError):
            self._failed = True
            raise
        return arrived

    def _take(self, mail: Mail, arrived: list[Arrived]) -> None:
        item = mail.item
        if isinstance(item, Rejected):
            self._metrics.on_rejected(item.reason)
            raise errors.of_rejected(item)
        if item.finish_reason == "error":
            log_event(
                _log, logging.ERROR, "request failed in the engine", request_id=self._job.request_id, error=item.error
            )
            raise errors.step_failed(self._job.request_id)
        track = self._tracks[item.request_id, item.choice]
        if track.choice.finish_reason is not None:
            return  # arrived between the stop string and the abort
        self._time(track, mail.arrived_s, item)
        piece = track.choice.push(item)
        if piece.finish_reason is not None:
            self._num_open -= 1
            if item.finish_reason is None:
                self._engine.abort_choice(item.request_id, item.choice)
        if not piece.is_empty:
            arrived.extend((index, piece) for index in track.indices)

    def _time(self, track: _Track, now_s: float, item: ChoiceOutput) -> None:
        """Latencies as the client sees them, but by when tokens reached this process: a slow reader is not our latency."""
        if not item.token_ids:
            return
        if self._first_token_s is None:
            self._first_token_s = now_s
            self._metrics.on_first_token(now_s - self._job.arrived_s)
        if track.last_token_s is None:
            if item.choice == 0:
                self._cached[item.request_id] = item.num_cached_tokens
            if self._queue_time_s is None:
                self._queue_time_s = item.queue_time_s
        else:
            self._metrics.on_next_tokens(now_s - track.last_token_s)
        track.last_token_s = now_s

    def _record(self) -> None:
        job = self._job
        unfinished = "error" if self._failed else "abort"
        reasons = [track.choice.finish_reason or unfinished for track in self._tracks.values() for _ in track.indices]
        end_s = self._clock() - job.arrived_s
        first_token_s = None if self._first_token_s is None else self._first_token_s - job.arrived_s
        record = RequestRecord(
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_generated_tokens=self.num_generated_tokens,
            n=job.n,
            max_tokens=max(sampling.max_tokens for sampling in job.sampling),
            first_token_s=first_token_s,
            queue_time_s=self._queue_time_s,
            end_s=end_s,
            finish_reasons=tuple(reasons),
        )
        self._metrics.on_finished(record)
        tell(job.span, job, record)
        if job.log:
            self._log_end(record)

    def _log_end(self, record: RequestRecord) -> None:
        reasons = ",".join(sorted(set(record.finish_reasons)))
        log_event(
            _log,
            logging.INFO,
            "request finished",
            request_id=self._job.request_id,
            route=self._job.route,
            finish=reasons,
            n=record.n,
            prompt_tokens=record.num_prompt_tokens,
            cached_tokens=record.num_cached_tokens,
            generated_tokens=record.num_generated_tokens,
            first_token_ms=None if record.first_token_s is None else round(record.first_token_s * 1e3, 1),
            total_ms=round(record.end_s * 1e3, 1),
        )
