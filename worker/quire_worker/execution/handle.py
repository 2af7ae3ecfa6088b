"""A launched step and the way its tokens take back to the host."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire_worker.execution.device import sticky_errors
from quire_worker.execution.prepared_step import SampledRows
from quire_worker.execution.sampler import Sampled
from quire_worker.plan import StepResult
from quire_worker.request import TokenLogprobs


@dataclass(frozen=True, slots=True)
class _OnHost:
    """Tensors whose copies to the host have been started."""

    token_ids: Tensor
    logprobs: tuple[Tensor, ...]
    """Empty, or chosen logprobs, chosen ranks, top ids, top logprobs."""
    arrived: torch.cuda.Event | None


class StepHandle:
    """Made by launch, filled by sample, read once by result."""

    def __init__(self, step_id: int, logits_SV: Tensor | None, sampled_rows: SampledRows) -> None:
        """No logits: the step samples nothing."""
        self.step_id = step_id
        self.sampled_rows = sampled_rows
        self._logits = logits_SV
        self._sampled: Sampled | None = None
        self._on_host: _OnHost | None = None

    def take_logits(self) -> Tensor | None:
        """[S, V], once: they are not kept past sampling."""
        assert self._sampled is None, "sample() was called twice"
        logits, self._logits = self._logits, None
        return logits

    def fill(self, sampled: Sampled) -> None:
        """The tokens are chosen; send them to the host."""
        self._sampled = sampled
        wanted = sampled.logprobs
        values = (
            ()
            if wanted is None
            else (
                wanted.values.chosen_logprobs,
                wanted.values.chosen_ranks,
                wanted.values.ids,
                wanted.values.logprobs,
            )
        )
        self._on_host = _to_host(sampled.token_ids, values)

    def result(self) -> StepResult:
        """Wait for the tokens. Raises DeviceError if the device failed for good, else what the step raised."""
        assert self._on_host is not None, "sample() was not called"
        assert self._sampled is not None
        if self._on_host.arrived is not None:
            with sticky_errors():
                self._on_host.arrived.synchronize()
        token_ids = self._on_host.token_ids.tolist()
        return StepResult(
            step_id=self.step_id,
            rows=self.sampled_rows.rows.tolist(),
            token_ids=[[token_id] for token_id in token_ids],
            logprobs=self._logprobs(len(token_ids)),
        )

    def _logprobs(self, num_rows: int) -> list[list[TokenLogprobs] | None]:
        assert self._sampled is not None
        assert self._on_host is not None
        logprobs: list[list[TokenLogprobs] | None] = [None] * num_rows
        wanted = self._sampled.logprobs
        if wanted is not None:
            columns = [tensor.tolist() for tensor in self._on_host.logprobs]
            for i, k, chosen, rank, ids, values in zip(
                wanted.index.tolist(), wanted.num_top.tolist(), *columns, strict=True
            ):
                entry = TokenLogprobs(logprob=chosen, rank=rank, top_ids=tuple(ids[:k]), top_logprobs=tuple(values[:k]))
                logprobs[i] = [entry]
        return logprobs


def _to_host(token_ids: Tensor, logprobs: tuple[Tensor, ...]) -> _OnHost:
    if token_ids.device.type == "cpu":
        return _OnHost(token_ids, logprobs, None)
    copies = [_pinned_copy(tensor) for tensor in (token_ids, *logprobs)]
    # Blocking, so that a host thread that waits leaves its core to others.
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    arrived.record()
    return _OnHost(copies[0], tuple(copies[1:]), arrived)


def _pinned_copy(tensor: Tensor) -> Tensor:
    """Into memory that the device writes by itself, which torch's allocator hands out again and again."""
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return on_host.copy_(tensor, non_blocking=True)
