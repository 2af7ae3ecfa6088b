"""One HTTP request's generation: submitted, followed to its end, aborted if left early, counted and logged.

Knows neither JSON nor HTTP; it is the same for chats and completions, streamed or not.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from msgspec.structs import replace

from quire_contract.openai.errors import ApiError
from quire_contract.prompt import TokenStream
from quire_contract.telemetry import log_event
from quire_worker.engine.messages import ChoiceOutput, Rejected, Submit
from quire_worker.request import PromptLogprobs, SamplingParams
from quire_worker.server.choice import Choice, Piece
from quire_worker.server.engine_client import EngineClient, EngineDeadError
from quire_worker.server.failures import FAILURES, Failures
from quire_worker.server.mailbox import Mail, Mailbox
from quire_worker.server.metrics import Metrics, RequestRecord
from quire_worker.server.tracing import NO_SPAN, Span, tell
from quire_worker.server.urgency import Urgency, left

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
    urgency: Urgency = dataclasses.field(default_factory=Urgency)
    log: bool = True
    only_prompts: bool = False
    """Nothing that is generated is shown or counted."""
    shows_prompts: bool = False
    """The first piece of each choice is told even if it is empty: something of its prompt goes with it."""
    shows_token_ids: bool = False
    """Pieces with tokens are told even if they have no text."""
    grammar: str | None = None
    """What every choice must match, see `Submit.grammar`."""
    grammar_field: str = ""
    """Path of the request's field that the grammar comes from."""
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
        self.has_begun = False
        """Something of it has been told."""
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
        self._scores: dict[str, list[PromptLogprobs]] = {}
        self._first_token_s: float | None = None
        self._queue_time_s: float | None = None
        self._failed = False
        self._failures = Failures(
            engine, metrics, clock, job.request_id, arrived_s=job.arrived_s, grammar_field=job.grammar_field
        )
        self._inbox: AbstractContextManager[Mailbox] | None = None
        self._mailbox: Mailbox | None = None

    def _id(self, prompt: int) -> str:
        return f"{self._job.engine_id}-{prompt}"

    def __enter__(self) -> "Generation":
        job, urgency = self._job, self._job.urgency
        spent_s = self._failures.spent_s(urgency.timeout_s)
        submits = [
            Submit(
                request_id=self._id(index),
                prompt_token_ids=prompt,
                sampling=job.sampling[index],
                n=self._engine_n,
                cache_salt=job.cache_salt,
                priority=urgency.priority,
                timeout_s=left(urgency.timeout_s, spent_s),
                queue_timeout_s=left(urgency.queue_timeout_s, spent_s),
                grammar=job.grammar,
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
        if self._job.only_prompts:
            return 0
        return sum(track.choice.num_tokens * len(track.indices) for track in self._tracks.values())

    @property
    def num_shown_scores(self) -> int:
        """Log-probabilities of prompts that the answer shows, over all its choices."""
        job = self._job
        num_top = max((sampling.prompt_logprobs or 0 for sampling in job.sampling), default=0)
        return self.num_prompt_tokens * job.n * (num_top + 1) if self._scores else 0

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
            raise self._failures.of_rejected(item)
        if item.finish_reason in FAILURES:
            raise self._failures.error_of(item)
        track = self._tracks[item.request_id, item.choice]
        if track.choice.finish_reason is not None:
            return  # arrived between the stop string and the abort
        self._time(track, mail.arrived_s, item)
        piece = track.choice.push(item)
        if piece.finish_reason is not None:
            self._num_open -= 1
            if item.finish_reason is None:
                self._engine.abort_choice(item.request_id, item.choice)
        if item.prompt_logprobs is not None:
            self._scores[item.request_id] = item.prompt_logprobs
        self._tell(track, item, piece, arrived)

    def _tell(self, track: _Track, item: ChoiceOutput, piece: Piece, arrived: list[Arrived]) -> None:
        """Hand the piece out for every index that shows it, unless there is nothing in it to show."""
        if self._job.only_prompts:
            reason = None if piece.finish_reason is None else "length"
            piece = replace(piece, text="", token_ids=[], entries=[], finish_reason=reason, stop_reason=None)
        is_first = not track.has_begun
        is_told = not piece.is_empty or (self._job.shows_token_ids and bool(piece.token_ids))
        if is_told or (is_first and self._job.shows_prompts):
            track.has_begun = True
            if is_first:
                # Choice 0 is the first to have any: the others wait until it has computed the prompt.
                piece = replace(piece, scores=self._scores.get(item.request_id))
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
