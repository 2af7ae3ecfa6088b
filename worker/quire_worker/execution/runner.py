"""Carries out plans on one device with torch: rows, inputs, model, sampler.

    launch(plan)   rows change, inputs are derived, the model runs      -> handle with logits
    sample(handle) tokens are chosen and appended to the rows           -> copies to the host begin
    handle.result()                                                     -> StepResult

On a GPU launch and sample only enqueue work, so the next plan may be launched before the last one's tokens are known on the host: its
inputs read them from the rows on the device. Must not know requests, policy or where blocks come from.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quire_kernels.ops import Ops
from quire_worker.dormant import Dormant
from quire_worker.execution.device import sticky_errors
from quire_worker.execution.dormancy import HostDormancy
from quire_worker.execution.handle import StepHandle
from quire_worker.execution.prepared_step import Computed
from quire_worker.execution.rows import Rows, upload
from quire_worker.execution.sampler import NOTHING, Sampler
from quire_worker.execution.sampling_rows import SamplingRows
from quire_worker.plan import Handle, StepPlan, TokenMasks


class Steps(Protocol):
    """Rows and model of one device."""

    def run(self, plan: StepPlan) -> Computed:
        """Change the rows, derive the inputs, run the model."""
        ...

    def prepare(self, *, is_smallest: bool = False) -> int:
        """Record the largest step, or the smallest, before any occurs. How many others may be recorded later."""
        ...


class TorchRunner:
    """A plan.Runner. The model must have its weights and its KV cache."""

    def __init__(
        self,
        *,
        steps: Steps,
        kv_cache: Tensor,
        rows: Rows,
        params: SamplingRows,
        ops: Ops,
        dormancy: Dormant | None = None,
    ) -> None:
        """dormancy: how this runner sleeps; None: as on a CPU."""
        self._steps = steps
        self._kv_cache = kv_cache
        self._params = params
        self._ops = ops
        self._sampler = Sampler(rows, params, ops)
        self._dormancy = dormancy or HostDormancy(kv_cache)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Handle:
        """Start the plan. Rows of a plan that raised are undefined until they are set up again.

        Raises DeviceError if the device is of no more use, else whatever the step raised.
        """
        with sticky_errors():
            return self._launch(plan)

    def _launch(self, plan: StepPlan) -> StepHandle:
        for row in plan.freed_rows:
            self.forget(row)
        if plan.copies:
            self._ops.copy_blocks(self._kv_cache, upload(np.array(plan.copies, np.int64), self._kv_cache.device))
        for new in plan.new_rows:
            self._params.set_up(new)
        return StepHandle(plan.step_id, self._steps.run(plan))

    @torch.inference_mode()
    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        """Choose the launched step's tokens. Raises as `launch` does."""
        assert isinstance(handle, StepHandle)
        logits = handle.take_logits()
        with sticky_errors():
            if handle.chosen is not None:
                sampled = self._sampler.accept(handle.chosen, handle.sampled_rows, masks)
            else:
                sampled = NOTHING if logits is None else self._sampler.sample(logits, handle.sampled_rows, masks)
            handle.fill(sampled)

    @torch.inference_mode()
    def prepare(self, *, is_smallest: bool = False) -> int:
        """Record the largest step, or the smallest, before any occurs. How many others may be recorded later.

        The largest should be the first: the others fit in its memory."""
        return self._steps.prepare(is_smallest=is_smallest)

    def fall_asleep(self) -> Iterator[int]:
        """See dormant.Dormant."""
        return self._dormancy.fall_asleep()

    def wake(self) -> Iterator[int]:
        """See dormant.Dormant."""
        return self._dormancy.wake()

    def forget(self, row: int) -> None:
        """The row's request has left."""
        self._params.forget(row)

    def close(self) -> None:
        """Let go of the device's memory. The runner is unusable afterwards."""
        del self._kv_cache, self._steps
