"""Logits of prompts' last tokens, past the scheduler."""

from quire_worker.plan import NewRow, StepPlan
from quire_worker.request import SamplingParams


def last_logits(engine, prompts):
    """[prompts, V] float32, all prompts in one step of a Side that is used for nothing else."""
    sampling = SamplingParams(max_tokens=1, temperature=0.0)
    groups, first, new_rows = engine.info.groups, 1, []
    for row, prompt in enumerate(prompts):
        num_blocks = -(-len(prompt) // engine.info.block_size)
        tables = [list(range(first + g * num_blocks, first + (g + 1) * num_blocks)) for g in range(len(groups))]
        first += len(groups) * num_blocks
        new_rows.append(
            NewRow(
                row=row,
                request_id=str(row),
                token_ids=prompt,
                num_prompt_tokens=len(prompt),
                num_computed=0,
                block_ids=tables,
                sampling=sampling,
            )
        )
    plan = StepPlan(
        step_id=0,
        freed_rows=[],
        copies=[],
        new_rows=new_rows,
        rows=list(range(len(prompts))),
        num_tokens=[len(prompt) for prompt in prompts],
        new_blocks=[],
        replaced_block_ids=[],
    )
    return engine.runner.launch(plan).take_logits().float()
