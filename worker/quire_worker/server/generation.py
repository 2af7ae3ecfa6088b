"""One HTTP request's generation: submitted, followed to its end, aborted if left early, counted and logged.

Knows neither JSON nor HTTP; it is the same for chats and completions, streamed or not.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from msgspec.structs import replace

from quire_contract.openai.errors import ApiError
from quire_contract.prompt import TokenStream
from quire_contract.resume import ResumedChoice
from quire_contract.telemetry import log_event
from quire_worker.engine.messages import ChoiceOutput, Rejected, Submit
from quire_worker.request import PromptLogprobs, SamplingParams
from quire_worker.server import errors
from quire_worker.server.choice import Choice, Piece
from quire_worker.server.engine_client import EngineClient, EngineDeadError
from quire_worker.server.failures import FAILURES, Failures
from quire_worker.server.mailbox import Mail, Mailbox, SlowReaderError
from quire_worker.server.metrics import Metrics, RequestRecord
from quire_worker.server.prompt_shown import no_scores
from quire_worker.server.token_pieces import TokenPieces
from quire_worker.server.tracing import NO_SPAN, Span, tell
from quire_worker.server.track import Track
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
    is_replayed: bool = False
    """A router is told of each token: pieces come one by one, those without anything to show, too."""
    begun: Sequence[ResumedChoice] | None = None
    """What another worker made of it; then each choice goes to the engine on its own. None: nothing, it begins here."""
    cached: Mapping[int, int] = dataclasses.field(default_factory=dict)
    """Tokens that the worker where it began found in its cache, by the prompt's number."""
    is_streamed: bool = True
    """See `Submit.is_streamed`."""


Arrived = tuple[int, Piece]
"""Index of a choice in the answer, and what it got."""


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
        # Greedy choices are all the same: compute one, show it n times. Where some have begun elsewhere they may differ.
        self._is_shared = job.sampling[0].temperature == 0 and job.begun is None
        self._tracks = {
            (track.request_id, track.engine_choice): track
            for prompt in range(len(job.prompts))
            for track in self._tracks_of(prompt, new_detokeniser)
        }
        self._num_open = len(self._tracks)
        self.num_prompt_tokens = sum(map(len, job.prompts))
        self._cached: dict[int, int] = dict(job.cached)
        self._scores: dict[str, list[PromptLogprobs]] = {}
        self._first_token_s: float | None = None
        self._queue_time_s: float | None = None
        self._failed = self._moves = False
        self._failures = Failures(
            engine, metrics, clock, job.request_id, arrived_s=job.arrived_s, grammar_field=job.grammar_field
        )
        self._inbox: AbstractContextManager[Mailbox] | None = None
        self._mailbox: Mailbox | None = None

    def _tracks_of(self, prompt: int, new_detokeniser: Callable[[Sequence[int]], TokenStream]) -> Iterator[Track]:
        job, sampling = self._job, self._job.sampling[prompt]
        for number in range(1 if self._is_shared else job.n):
            first = prompt * job.n + number
            choice = Choice(
                new_detokeniser(job.prompts[prompt]),
                job.stops,
                include_stop=job.include_stop,
                min_tokens=sampling.min_tokens,
                stop_token_ids=sampling.stop_token_ids,
            )
            pieces = TokenPieces(choice, has_entries=sampling.logprobs is not None, include_stop=job.include_stop)
            yield Track(
                f"{job.engine_id}-{prompt}" if job.begun is None else f"{job.engine_id}-{prompt}-{number}",
                number if job.begun is None else 0,
                prompt,
                range(first, first + (job.n if self._is_shared else 1)),
                choice,
                pieces if job.is_replayed else None,
            )

    def again(self) -> list[Arrived]:
        """What another worker let out of the job's choices. Before it is entered; what ends by it is not submitted.

        Takes a while for many tokens."""
        tracks = {track.indices.start: track for track in self._tracks.values()}
        arrived: list[Arrived] = []
        for begun in self._job.begun or ():
            track = tracks[begun.index]
            for piece in track.again(begun, self._job.sampling[track.prompt]):
                self._tell(track, no_scores(len(self._job.prompts[track.prompt])), piece, arrived)
            self._num_open -= track.choice.finish_reason is not None
        return arrived

    def _submits(self, spent_s: float) -> Iterator[Submit]:
        job, urgency = self._job, self._job.urgency
        for track in self._tracks.values():
            sampling = job.sampling[track.prompt]
            if track.choice.finish_reason is not None or track.engine_choice > 0:
                continue
            if job.begun is not None:
                # Its own seed; what was shown of the prompt is not shown again.
                sampling = replace(
                    sampling,
                    seed=(sampling.seed + track.indices.start % job.n) % 2**64,
                    prompt_logprobs=None if track.has_begun else sampling.prompt_logprobs,
                )
            yield Submit(
                request_id=track.request_id,
                prompt_token_ids=job.prompts[track.prompt],
                sampling=sampling,
                n=1 if self._is_shared or job.begun is not None else job.n,
                cache_salt=job.cache_salt,
                priority=urgency.priority,
                timeout_s=left(urgency.timeout_s, spent_s),
                queue_timeout_s=left(urgency.queue_timeout_s, spent_s),
                grammar=job.grammar,
                output_token_ids=track.begun_ids,
                origin=job.engine_id,
                is_streamed=job.is_streamed,
            )

    def __enter__(self) -> "Generation":
        spent_s = self._failures.spent_s(self._job.urgency.timeout_s)
        submits = list(self._submits(spent_s))
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
    def cached(self) -> dict[int, int]:
        """Tokens found in the cache, by the prompt's number, as far as it is known."""
        return self._cached

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

        Raises ApiError if the engine refuses or fails the request or its client takes too little, EngineDeadError if the engine dies.
        """
        assert self._mailbox is not None, "enter first"
        arrived: list[Arrived] = []
        try:
            while not arrived:
                for mail in await self._mailbox.take():
                    self._take(mail, arrived)
        except (ApiError, EngineDeadError):
            self._failed = not self._moves
            raise
        except SlowReaderError:  # not the engine's failure: it ends as "abort"
            raise self._failures.of_slow_reader() from None
        return arrived

    def move(self) -> None:
        """It is to go on elsewhere: `next` raises ApiError 503, draining, once what has arrived is taken."""
        self._moves = True
        if self._mailbox is not None:
            self._mailbox.fail(errors.drained())

    def _take(self, mail: Mail, arrived: list[Arrived]) -> None:
        item = mail.item
        if isinstance(item, Rejected):
            raise self._failures.of_rejected(item)
        self._tracks[item.request_id, item.choice].num_preemptions += item.num_preemptions
        if item.finish_reason in FAILURES:
            raise self._failures.error_of(item)
        track = self._tracks[item.request_id, item.choice]
        if track.choice.finish_reason is not None:
            return  # arrived between the stop string and the abort
        self._time(track, mail.arrived_s, item)
        if item.prompt_logprobs is not None:
            self._scores[item.request_id] = item.prompt_logprobs
        for piece in track.push(item):
            if piece.finish_reason is not None:
                self._num_open -= 1
                if item.finish_reason is None:
                    self._engine.abort_choice(item.request_id, item.choice)
            # Choice 0 is the first to have any: the others wait until it has computed the prompt.
            self._tell(track, self._scores.get(item.request_id), piece, arrived)

    def _tell(
        self, track: Track, scores: Sequence[PromptLogprobs] | None, piece: Piece, arrived: list[Arrived]
    ) -> None:
        """Hand the piece out for every index that shows it, unless there is nothing in it to show; then only if tokens are told."""
        if self._job.only_prompts:
            if self._job.is_replayed and piece.finish_reason is None:
                return  # its one token is nobody's business
            reason = None if piece.finish_reason is None else "length"
            piece = replace(piece, text="", token_ids=[], entries=[], finish_reason=reason, stop_reason=None)
        is_first = not track.has_begun
        is_shown = not piece.is_empty or (self._job.shows_token_ids and bool(piece.token_ids))
        if is_shown or (is_first and self._job.shows_prompts):
            track.has_begun = True
            if is_first and scores is not None:
                piece = replace(piece, scores=scores)
        elif self._job.is_replayed and piece.token_ids:
            piece = replace(piece, is_silent=True)
        else:
            return
        arrived.extend((index, piece) for index in track.indices)

    def _time(self, track: Track, now_s: float, item: ChoiceOutput) -> None:
        """Latencies as the client sees them, but by when tokens reached this process: a slow reader is not our latency."""
        if not item.token_ids:
            return
        if self._first_token_s is None:
            self._first_token_s = now_s
            self._metrics.on_first_token(now_s - self._job.arrived_s)
        if track.last_token_s is None:
            if item.choice == 0:
                self._cached.setdefault(track.prompt, item.num_cached_tokens)
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
            num_preemptions=tuple(track.num_preemptions for track in self._tracks.values()),
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
            begun_tokens=None if self._job.begun is None else sum(len(begun.token_ids) for begun in self._job.begun),
            first_token_ms=None if record.first_token_s is None else round(record.first_token_s * 1e3, 1),
            total_ms=round(record.end_s * 1e3, 1),
        )
