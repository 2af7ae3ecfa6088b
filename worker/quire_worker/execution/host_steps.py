"""Steps on a CPU: rows in the host's memory, inputs by numpy."""

import numpy as np
import torch
from torch import Tensor

from quire_kernels.ops import Ops
from quire_worker.execution.host_inputs import prepare_step_on_host
from quire_worker.execution.prepared_step import NO_ROWS, Computed, PreparedStep
from quire_worker.execution.prompt_scores import WantedQueries, score
from quire_worker.execution.rows import HostRows
from quire_worker.execution.sampling_rows import SamplingRows
from quire_worker.models.decoder import Decoder
from quire_worker.plan import StepPlan


class HostSteps:
    """See runner.Steps."""

    def __init__(self, *, model: Decoder, kv_cache: Tensor, rows: HostRows, params: SamplingRows, ops: Ops) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._rows = rows
        self._params = params
        self._ops = ops

    def run(self, plan: StepPlan) -> Computed:
        """See runner.Steps."""
        clear_fresh_blocks(self._kv_cache, plan, self._rows.block_size)
        self._rows.apply(plan)
        if not plan.rows:
            return Computed(logits=None, sampled=NO_ROWS)
        step = prepare_step_on_host(self._rows, plan.rows, plan.num_tokens, self._params.scorer)
        if step.queries is not None:
            return self._score(step, step.queries)
        return Computed(logits=self._model(step.inputs), sampled=step.sampled)

    def _score(self, step: PreparedStep, queries: WantedQueries) -> Computed:
        hidden = self._model.hidden(step.inputs)
        assert hidden is not None
        targets = self._rows.arrays.token_ids[queries.target_rows, queries.target_positions].astype(np.int64)
        scored = torch.from_numpy(queries.scored)
        scores = score(
            self._model, self._ops, hidden, scored, torch.from_numpy(targets), queries.spans, self._params.vocab_size
        )
        logits = self._model.logits(hidden[torch.from_numpy(queries.sampled)]) if len(queries.sampled) else None
        return Computed(logits=logits, sampled=step.sampled, scores=scores)

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
