"""Carries out plans on one device with torch: rows, inputs, model, sampler.

    launch(plan)   rows change, inputs are derived, the model runs      -> handle with logits
    sample(handle) tokens are chosen and appended to the rows           -> copies to the host begin
    handle.result()                                                     -> StepResult

On a GPU launch and sample only enqueue work, so the next plan may be launched before the last one's tokens are known on the host: its
inputs read them from the rows on the device. Must not know requests, policy or where blocks come from.
"""

import numpy as np
import torch
from torch import Tensor

from quire_kernels.ops import Ops
from quire_worker.execution.device import sticky_errors
from quire_worker.execution.handle import StepHandle
from quire_worker.execution.inputs import prepare_step
from quire_worker.execution.prepared_step import NO_ROWS
from quire_worker.execution.rows import Rows, upload
from quire_worker.execution.sampler import NOTHING, Sampler
from quire_worker.execution.sampling_rows import SamplingRows
from quire_worker.models.decoder import Decoder
from quire_worker.plan import Handle, StepPlan, TokenMasks


def fresh_blocks(plan: StepPlan, block_size: int) -> list[int]:
    """Blocks whose content is of no more use: those handed out for tokens that are still to be computed.

    On a CPU they are cleared, because attention multiplies hidden slots by zero there, and what a former owner left may not be
    finite: one request whose keys overflowed would spoil whoever gets its blocks. The Triton kernels mask instead."""
    blocks = [block for _, _, grown in plan.new_blocks for block in grown]
    for new in plan.new_rows:
        first = -(-new.num_computed // block_size)  # the block before may be partly filled, by the copy a fork makes
        blocks += [block for table in new.block_ids for block in table[first:]]
    return blocks


class TorchRunner:
    """A plan.Runner. The model must have its weights and its KV cache."""

    def __init__(self, *, model: Decoder, kv_cache: Tensor, rows: Rows, params: SamplingRows, ops: Ops) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._rows = rows
        self._params = params
        self._ops = ops
        self._sampler = Sampler(rows, params, ops)

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
            self._ops.copy_blocks(self._kv_cache, upload(np.array(plan.copies, np.int64), self._rows.device))
        if self._rows.device.type == "cpu" and (fresh := fresh_blocks(plan, self._rows.block_size)):
            self._kv_cache.index_fill_(0, torch.tensor(fresh), 0)
        self._rows.apply(plan)
        for new in plan.new_rows:
            self._params.set_up(new)
        if not plan.rows:
            return StepHandle(plan.step_id, None, NO_ROWS)
        step = prepare_step(self._rows, plan.rows, plan.num_tokens)
        return StepHandle(plan.step_id, self._model(step.inputs), step.sampled)

    @torch.inference_mode()
    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        """Choose the launched step's tokens. Raises as `launch` does."""
        assert isinstance(handle, StepHandle)
        logits = handle.take_logits()
        with sticky_errors():
            sampled = NOTHING if logits is None else self._sampler.sample(logits, handle.sampled_rows, masks)
            handle.fill(sampled)

    def forget(self, row: int) -> None:
        """The row's request has left."""
        self._params.forget(row)

    def close(self) -> None:
        """Let go of the device's memory. The runner is unusable afterwards."""
        del self._kv_cache, self._model
