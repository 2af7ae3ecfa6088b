"""A made-up step, run before serving: to measure the memory of the largest one, or to get first-use costs over with."""

from quire_worker.execution.kv_memory import KVShape
from quire_worker.execution.runner import TorchRunner
from quire_worker.plan import NewRow, StepPlan
from quire_worker.request import SamplingParams

_DEMANDING = SamplingParams(max_tokens=1, top_p=0.9, repetition_penalty=1.1, logprobs=5, prompt_logprobs=1)


def run_plan_of(runner: TorchRunner, shape: KVShape, *, num_rows: int, num_tokens: int) -> None:
    """Compute `num_tokens` tokens in each of the first `num_rows` rows, sample all with everything on, and forget them.

    All rows write the same blocks, from block 1 on: only shapes and memory matter here, and nothing refers to those blocks yet.
    """
    block_ids = list(range(1, 2 + (num_tokens - 1) // shape.block_size))
    new_rows = [
        NewRow(
            row=row,
            request_id="trial",
            token_ids=[0] * num_tokens,
            num_prompt_tokens=num_tokens,
            num_computed=0,
            block_ids=[block_ids] * shape.num_groups,
            sampling=_DEMANDING,
        )
        for row in range(num_rows)
    ]
    _run(runner, _plan(new_rows=new_rows, rows=list(range(num_rows)), num_tokens=[num_tokens] * num_rows))
    # The same rows again, one token each: a step of decoding takes other paths.
    _run(runner, _plan(rows=list(range(num_rows)), num_tokens=[1] * num_rows))
    for row in range(num_rows):
        runner.forget(row)


def _run(runner: TorchRunner, plan: StepPlan) -> None:
    handle = runner.launch(plan)
    runner.sample(handle, None)
    handle.result()


def _plan(rows: list[int], num_tokens: list[int], new_rows: list[NewRow] | None = None) -> StepPlan:
    return StepPlan(
        step_id=0,
        freed_rows=[],
        copies=[],
        new_rows=new_rows or [],
        rows=rows,
        num_tokens=num_tokens,
        new_blocks=[],
        replaced_block_ids=[],
    )
