"""On a CPU a token's logits are the same to the bit however its row was computed: whole, in chunks, from a cached prefix, in company."""

import pytest
import torch

from quire_worker.plan import NewRow, StepPlan
from quire_worker.request import SamplingParams

GREEDY = SamplingParams(max_tokens=1, temperature=0.0)
BLOCKS_A_ROW = 16
"""Of each KV group."""


class Computing:
    """Rows of one engine, computed by plans that the test makes."""

    def __init__(self, engine):
        self.runner, self.num_groups = engine.runner, len(engine.info.groups)

    def new_row(self, row, prompt, num_computed=0):
        first = 1 + row * self.num_groups * BLOCKS_A_ROW
        tables = [list(range(first + g * BLOCKS_A_ROW, first + (g + 1) * BLOCKS_A_ROW)) for g in range(self.num_groups)]
        return NewRow(
            row=row,
            request_id=str(row),
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            num_computed=num_computed,
            block_ids=tables,
            sampling=GREEDY,
        )

    def step(self, counts, new_rows=(), freed=()):
        """Logits of the rows whose tokens are all computed; `counts` by row."""
        plan = StepPlan(
            step_id=0,
            freed_rows=list(freed),
            copies=[],
            new_rows=list(new_rows),
            rows=list(counts),
            num_tokens=list(counts.values()),
            new_blocks=[],
            replaced_block_ids=[],
        )
        return self.runner.launch(plan).take_logits()

    def in_chunks(self, prompt, size, company=None):
        """The last token's logits, with `size` tokens a step; `company` goes along in another row, one token a step."""
        logits, done = None, 0
        new_rows = [self.new_row(0, prompt)] + ([] if company is None else [self.new_row(1, company)])
        while done < len(prompt):
            count = min(size, len(prompt) - done)
            counts = {0: count} if company is None else {1: 1, 0: count}
            logits, done, new_rows = self.step(counts, new_rows), done + count, []
        return logits[-1]


def random_prompt(length, seed):
    return torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(
    params=[
        ("llama", "none"),
        ("llama-narrow-mlp", "none"),
        ("llama-odd-mlp", "none"),
        ("qwen2-mixed-windows", "none"),
        ("qwen3", "none"),
        ("mixtral", "none"),
        ("llama", "int8"),
        ("llama-odd-mlp", "int8-weight-only"),
        ("qwen3", "int8-weight-only"),
    ],
    ids="-".join,
)
def computing(request, checkpoint, side):
    name, quantization = request.param
    return Computing(side(checkpoint(name), dtype="bfloat16", quantization=quantization, blocks=1200))


def test_logits_do_not_depend_on_how_a_row_was_computed(computing):
    prompt, company = random_prompt(150, 1), random_prompt(230, 2)
    whole = computing.step({0: 150}, [computing.new_row(0, prompt)])[0].clone()

    several = computing.step({0: 150, 1: 230}, [computing.new_row(0, prompt), computing.new_row(1, company)])[0].clone()
    chunked = [computing.in_chunks(prompt, size).clone() for size in (1, 7, 48, 100)]
    accompanied = [computing.in_chunks(prompt, size, company).clone() for size in (1, 7, 48)]
    computing.step({0: 150}, [computing.new_row(0, prompt)])
    cached = [
        computing.step({0: 150 - start}, [computing.new_row(0, prompt, num_computed=start)], freed=[0])[0].clone()
        for start in (16, 128, 149)
    ]

    for logits in (several, *chunked, *accompanied, *cached):
        assert torch.equal(logits, whole)


def test_logits_of_a_large_batch_are_those_of_each_row_alone(computing):
    prompts = [random_prompt(3 + 5 * row, row) for row in range(20)]
    rows = [computing.new_row(row, prompt) for row, prompt in enumerate(prompts)]
    together = computing.step({row: len(prompt) for row, prompt in enumerate(prompts)}, rows).clone()

    alone = [computing.step({row: len(prompts[row])}, [rows[row]], freed=[row])[0].clone() for row in range(20)]

    assert torch.equal(together, torch.stack(alone))
