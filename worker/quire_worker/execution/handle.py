"""A launched step and the way its tokens take back to the host."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire_kernels.logprobs import TopLogprobs
from quire_worker.execution.device import sticky_errors
from quire_worker.execution.prepared_step import Computed
from quire_worker.execution.prompt_scores import pack_scores, rows_with_nan
from quire_worker.execution.sampler import Sampled
from quire_worker.plan import StepResult
from quire_worker.request import FAILED_NO_TOKEN, FAILED_NOT_FINITE, PromptLogprobs, TokenLogprobs


@dataclass(frozen=True, slots=True)
class _OnHost:
    """Tensors whose copies to the host have been started."""

    token_ids: Tensor
    logprobs: tuple[Tensor, ...]
    """Empty, or chosen logprobs, chosen ranks, top ids, top logprobs."""
    named: Tensor | None
    scores: tuple[Tensor, ...]
    """Empty, or of prompt tokens what `logprobs` is of sampled ones."""
    broken: Tensor | None
    without_tokens: Tensor | None
    arrived: torch.cuda.Event | None


class StepHandle:
    """Made by launch, filled by sample, read once by result."""

    def __init__(self, step_id: int, computed: Computed) -> None:
        self.step_id = step_id
        self.sampled_rows = computed.sampled
        self._logits = computed.logits
        self._scores = computed.scores
        self.chosen = computed.chosen
        self._sampled: Sampled | None = None
        self._on_host: _OnHost | None = None

    def take_logits(self) -> Tensor | None:
        """[S, V], once: they are not kept past sampling. None: the step samples nothing, or has chosen."""
        assert self._sampled is None, "sample() was called twice"
        logits, self._logits = self._logits, None
        return logits

    def fill(self, sampled: Sampled) -> None:
        """The tokens are chosen; send them to the host."""
        self._sampled = sampled
        wanted, scores = sampled.logprobs, self._scores
        self._on_host = _to_host(
            _OnHost(
                token_ids=sampled.token_ids,
                logprobs=() if wanted is None else _columns(wanted.values),
                named=None if wanted is None else wanted.named,
                scores=() if scores is None else _columns(scores.values),
                broken=sampled.broken,
                without_tokens=sampled.without_tokens,
                arrived=None,
            )
        )

    def result(self) -> StepResult:
        """Wait for the tokens. Raises DeviceError if the device failed for good, else what the step raised."""
        assert self._on_host is not None, "sample() was not called"
        assert self._sampled is not None
        if self._on_host.arrived is not None:
            with sticky_errors():
                self._on_host.arrived.synchronize()
        token_ids = self._on_host.token_ids.tolist()
        rows = self.sampled_rows.rows.tolist()
        return StepResult(
            step_id=self.step_id,
            rows=rows,
            token_ids=[[token_id] for token_id in token_ids],
            logprobs=self._logprobs(len(token_ids)),
            prompt_logprobs=self._prompt_logprobs(),
            failed=self._failed(rows),
        )

    def _failed(self, rows: list[int]) -> dict[int, str]:
        assert self._on_host is not None
        failed: dict[int, str] = {}
        if self._scores is not None:
            failed |= dict.fromkeys(rows_with_nan(self._scores.spans, self._on_host.scores[0]), FAILED_NOT_FINITE)
        broken, without = self._on_host.broken, self._on_host.without_tokens
        if broken is not None and broken.numpy().any():
            empty = set() if without is None else set(without.numpy().nonzero()[0].tolist())
            for i in broken.numpy().nonzero()[0].tolist():
                failed[rows[i]] = FAILED_NO_TOKEN if i in empty else FAILED_NOT_FINITE
        return failed

    def _logprobs(self, num_rows: int) -> list[list[TokenLogprobs] | None]:
        assert self._sampled is not None
        assert self._on_host is not None
        logprobs: list[list[TokenLogprobs] | None] = [None] * num_rows
        wanted = self._sampled.logprobs
        if wanted is None:
            return logprobs
        columns = [tensor.tolist() for tensor in self._on_host.logprobs]
        for i, k, chosen, rank, ids, values in zip(
            wanted.index.tolist(), wanted.num_top.tolist(), *columns, strict=True
        ):
            logprobs[i] = [
                TokenLogprobs(logprob=chosen, rank=rank, top_ids=tuple(ids[:k]), top_logprobs=tuple(values[:k]))
            ]
        if self._on_host.named is not None:
            for (i, ids), values in zip(wanted.named_ids.items(), self._on_host.named.tolist(), strict=True):
                entry = (logprobs[i] or [])[0]
                logprobs[i] = [
                    TokenLogprobs(
                        logprob=entry.logprob, rank=entry.rank, top_ids=ids, top_logprobs=tuple(values[: len(ids)])
                    )
                ]
        return logprobs

    def _prompt_logprobs(self) -> dict[int, PromptLogprobs]:
        if self._scores is None:
            return {}
        assert self._on_host is not None
        return pack_scores(self._scores.spans, self._on_host.scores)


def _columns(values: TopLogprobs) -> tuple[Tensor, ...]:
    return values.chosen_logprobs, values.chosen_ranks, values.ids, values.logprobs


def _to_host(made: _OnHost) -> _OnHost:
    """Start the copies of all that was made on a device."""
    if made.token_ids.device.type == "cpu":
        return made
    copied = _OnHost(
        token_ids=_pinned_copy(made.token_ids),
        logprobs=tuple(map(_pinned_copy, made.logprobs)),
        named=None if made.named is None else _pinned_copy(made.named),
        scores=tuple(map(_pinned_copy, made.scores)),
        broken=None if made.broken is None else _pinned_copy(made.broken),
        without_tokens=None if made.without_tokens is None else _pinned_copy(made.without_tokens),
        # Blocking, so that a host thread that waits leaves its core to others.
        arrived=torch.cuda.Event(blocking=True),  # type: ignore[no-untyped-call]
    )
    assert copied.arrived is not None
    copied.arrived.record()
    return copied


def _pinned_copy(tensor: Tensor) -> Tensor:
    """Into memory that the device writes by itself, which torch's allocator hands out again and again."""
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return on_host.copy_(tensor, non_blocking=True)
