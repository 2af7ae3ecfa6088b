"""The parity tests can fail: a small falsehood in what the model computes changes greedy tokens."""

import json
import shutil
from dataclasses import replace

import msgspec
import pytest
import torch

from quire_worker.plan import StepPlan


@pytest.fixture
def falsified_config(checkpoint, tmp_path):
    """A copy of a checkpoint whose config.json says something else."""

    def copy(name, **changes):
        folder = shutil.copytree(checkpoint(name), tmp_path / "copy")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return copy


def num_changed(right, wrong):
    return sum(a != b for a, b in zip(right, wrong, strict=True))


def test_another_rotary_base_changes_the_tokens(checkpoint, falsified_config, side, mixed_prompts):
    folder = falsified_config("llama", rope_parameters={"rope_type": "default", "rope_theta": 20_000.0})

    right, wrong = (side(path).greedy(mixed_prompts, 32) for path in (checkpoint("llama"), folder))

    assert num_changed(right, wrong) > len(right) // 2


def test_no_rotary_at_all_changes_the_tokens(checkpoint, side, mixed_prompts):
    right, falsified = side(checkpoint("llama")), side(checkpoint("llama"))
    table = falsified.runner._steps._model._cos_sin
    table.copy_(torch.cat((torch.ones(table.shape[1] // 2), torch.zeros(table.shape[1] // 2))))

    outputs = [engine.greedy(mixed_prompts, 32) for engine in (right, falsified)]

    assert num_changed(*outputs) > len(mixed_prompts) // 2


@pytest.mark.parametrize("window", [23, 25, None])
def test_another_window_changes_the_tokens(window, checkpoint, falsified_config, side, mixed_prompts):
    folder = falsified_config("mistral", sliding_window=window)

    right, wrong = (side(path).greedy(mixed_prompts, 32) for path in (checkpoint("mistral"), folder))

    assert num_changed(right, wrong) > len(right) // 2


def test_no_qk_norm_weights_change_the_tokens(checkpoint, side, mixed_prompts):
    right, falsified = side(checkpoint("qwen3")), side(checkpoint("qwen3"))
    for layer in falsified.runner._steps._model._layers:
        layer.attention._head_norms[0].tensor.fill_(1.0)

    outputs = [engine.greedy(mixed_prompts, 32) for engine in (right, falsified)]

    assert num_changed(*outputs) > len(mixed_prompts) // 2


class OneWrongBlock:
    """A runner whose first plan gives one row's first block to another row's table."""

    def __init__(self, runner):
        self._runner = runner

    def launch(self, plan: StepPlan):
        if plan.step_id == 0:
            other, victim = plan.new_rows[-2:]
            wrong = msgspec.structs.replace(victim, block_ids=[[other.block_ids[0][0], *victim.block_ids[0][1:]]])
            plan = msgspec.structs.replace(plan, new_rows=[*plan.new_rows[:-1], wrong])
        return self._runner.launch(plan)

    def sample(self, handle, masks):
        self._runner.sample(handle, masks)

    def close(self):
        self._runner.close()


def test_one_wrong_block_table_entry_changes_that_rows_tokens(checkpoint, side, mixed_prompts):
    prompts = mixed_prompts[-4:]

    right = side(checkpoint("llama")).greedy(prompts, 32)
    wrong = side(checkpoint("llama"), wrap=OneWrongBlock).greedy(prompts, 32)

    assert right[:2] == wrong[:2]
    assert right[-1] != wrong[-1] or right[-2] != wrong[-2]


def test_one_wrong_expert_changes_the_tokens(checkpoint, side, mixed_prompts):
    right, falsified = side(checkpoint("mixtral")), side(checkpoint("mixtral"))
    block = falsified.runner._steps._model._layers[1]._mlp
    block._moe = replace(block._moe, num_experts_per_token=1)

    outputs = [engine.greedy(mixed_prompts, 32) for engine in (right, falsified)]

    assert num_changed(*outputs) > len(mixed_prompts) // 2
