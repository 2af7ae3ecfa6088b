"""One step of an engine that makes embeddings: the queue's next batch, computed whole.

Has the surface of engine.Engine, so that the same loop drives both. Knows queue and embedder; no sockets, threads or clocks.
"""

import logging
from collections.abc import Sequence

from quire_worker.dormant import Dormant
from quire_worker.embedding import Embed, Embedder
from quire_worker.errors import DeviceError, LoadError
from quire_worker.request import FAILED_NOT_FINITE, ChoiceOutput, Submit
from quire_worker.scheduling.embed_queue import BatchItem, EmbedQueue
from quire_worker.scheduling.intake import Rejection

log = logging.getLogger(__name__)


class EmbedEngine:
    """Queue and embedder, stepped by one thread."""

    def __init__(self, queue: EmbedQueue, embedder: Embedder) -> None:
        self.scheduler = queue
        self._embedder = embedder
        self.last_step_tokens = 0
        """Tokens of the last batch; 0 if there was none."""
        self.last_step_rows = 0
        """Inputs of that batch."""

    @property
    def dormant(self) -> Dormant | None:
        """What computes, if it can sleep."""
        return self._embedder if isinstance(self._embedder, Dormant) else None

    def add(self, message: Submit | Embed) -> Rejection | None:
        """Queue a request, or say why not."""
        if isinstance(message, Embed):
            return self.scheduler.add(message)
        return Rejection("invalid", "This model makes embeddings or scores and generates no text.")

    def step(self) -> list[ChoiceOutput]:
        """Compute one batch; an output for each of its inputs, and what ran out of time.

        What a batch raises fails only the inputs that cause it, except DeviceError, which passes through."""
        ended = self.scheduler.expire()
        batch = self.scheduler.next_batch()
        self.last_step_tokens = sum(len(item.input.token_ids) for item in batch)
        self.last_step_rows = len(batch)
        if not batch:
            return ended
        outputs = ended + self._compute(batch)
        self.scheduler.counters.num_steps += 1
        return outputs

    def _compute(self, batch: Sequence[BatchItem]) -> list[ChoiceOutput]:
        """If it raises, each half alone, until the guilty input fails alone."""
        try:
            vectors = self._embedder.embed([item.input for item in batch])
        except DeviceError:
            raise
        except Exception as error:
            log.exception("batch failed inputs=%d first_request_id=%s", len(batch), batch[0].request_id)
            if len(batch) == 1:
                return [_failed(batch[0], f"the engine failed on this input: {type(error).__name__}")]
            half = len(batch) // 2
            return self._compute(batch[:half]) + self._compute(batch[half:])
        return [
            _failed(item, "the vector is not finite: the model's numbers overflow on this input", FAILED_NOT_FINITE)
            if vector is None
            else ChoiceOutput(
                request_id=item.request_id, choice=item.index, token_ids=[], finish_reason="stop", embedding=vector
            )
            for item, vector in zip(batch, vectors, strict=True)
        ]


def _failed(item: BatchItem, error: str, code: str | None = None) -> ChoiceOutput:
    return ChoiceOutput(
        request_id=item.request_id,
        choice=item.index,
        token_ids=[],
        finish_reason="error",
        error=error,
        error_code=code,
    )


def warm_up_embeddings(engine: EmbedEngine) -> None:
    """One batch, so that Ready means that they work. Raises LoadError if it does not."""
    rejection = engine.scheduler.add(Embed(request_id="warm-up", inputs=[[0]]))
    if rejection is not None:
        raise LoadError(f"the engine cannot take a one-token input: {rejection.message}")
    for output in engine.step():
        if output.error is not None:
            raise LoadError(f"the first batch failed: {output.error}")
    engine.scheduler.counters.reset()
