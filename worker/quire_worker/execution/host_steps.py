"""Steps on a CPU: rows in the host's memory, inputs by numpy."""

import torch
from torch import Tensor

from quire_worker.execution.host_inputs import prepare_step_on_host
from quire_worker.execution.prepared_step import NO_ROWS, SampledRows
from quire_worker.execution.rows import HostRows
from quire_worker.models.decoder import Decoder
from quire_worker.plan import StepPlan


class HostSteps:
    """See runner.Steps."""

    def __init__(self, *, model: Decoder, kv_cache: Tensor, rows: HostRows) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._rows = rows

    def run(self, plan: StepPlan) -> tuple[Tensor | None, SampledRows]:
        """See runner.Steps."""
        clear_fresh_blocks(self._kv_cache, plan, self._rows.block_size)
        self._rows.apply(plan)
        if not plan.rows:
            return None, NO_ROWS
        step = prepare_step_on_host(self._rows, plan.rows, plan.num_tokens)
        return self._model(step.inputs), step.sampled

    def prepare(self, *, is_smallest: bool = False) -> int:
        """Nothing is recorded here."""
        return 0


def clear_fresh_blocks(kv_cache: Tensor, plan: StepPlan, block_size: int) -> None:
    """Fill them with zeros: attention on a CPU multiplies hidden slots by zero, and what a former owner left may not be finite: one request
    whose keys overflowed would spoil whoever gets its blocks. The Triton kernels mask instead."""
    if fresh := fresh_blocks(plan, block_size):
        # torch fills no float8; its zero is a byte of zeros.
        memory = kv_cache.view(torch.uint8) if kv_cache.itemsize == 1 else kv_cache
        memory.index_fill_(0, torch.tensor(fresh), 0)


def fresh_blocks(plan: StepPlan, block_size: int) -> list[int]:
    """Blocks whose content is of no more use: those handed out for tokens that are still to be computed."""
    blocks = [block for _, _, grown in plan.new_blocks for block in grown]
    for new in plan.new_rows:
        first = -(-new.num_computed // block_size)  # the block before may be partly filled, by the copy a fork makes
        blocks += [block for table in new.block_ids for block in table[first:]]
    return blocks
