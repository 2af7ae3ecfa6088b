"""Recorded decode steps that choose their tokens themselves: which do, and that nothing else is different."""

import pytest
import torch
from device_road import CallRecorder, NothingLaunched

from quire_worker.plan import TokenMasks
from quire_worker.request import FAILED_NOT_FINITE
from tests.worker.execution.test_device_steps import ROWS, generate, road

GREEDY = ({"temperature": 0.0}, {"temperature": 0.0, "min_tokens": 6, "eos_token_ids": (5, 17, 900)})


def prefilled(model_dir, plans, *samplings):
    """A runner on a GPU's road, one row for each of the parameters, their prompts computed."""
    runner = road(model_dir, CallRecorder())
    new = [plans.new(row, [1, 2, 3 + row], [1 + row], **sampling) for row, sampling in enumerate(samplings)]
    plans.run(runner, plans.step(range(len(new)), [3] * len(new), new=new))
    return runner


def decode(runner, plans, rows, masks=None, **changes):
    """(whether the step chose by itself, its result)."""
    handle = runner.launch(plans.step(rows, [1] * len(rows), **changes))
    runner.sample(handle, masks)
    return handle.chosen is not None, handle.result()


@pytest.mark.parametrize(("depth", "blocks"), [(1, 40), (2, 40), (2, 14)])
def test_greedy_requests_get_the_tokens_that_the_sampler_chooses(model_dir, depth, blocks):
    recorded = road(model_dir, CallRecorder())
    expected = generate(road(model_dir, is_resident=False), depth=1, kinds=GREEDY)

    found = generate(recorded, depth=depth, blocks=blocks, kinds=GREEDY)

    assert found == expected
    assert recorded._steps._graphs.num_choosing >= 1


def test_a_step_that_chose_leaves_the_sampler_nothing_to_launch(model_dir, plans):
    runner = prefilled(model_dir, plans, {}, {})
    handle = runner.launch(plans.step([0, 1], [1, 1]))

    with NothingLaunched():
        runner.sample(handle, None)

    again = prefilled(model_dir, plans, {}, {})
    assert handle.result().token_ids == [[token] for token in plans.run(again, plans.step([0, 1], [1, 1])).values()]
    assert runner._steps._rows.host_num_tokens[:2].tolist() == runner._steps._rows.num_tokens[:2].tolist() == [5, 5]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7},
        {"logprobs": 0},
        {"logit_bias": ((4, 1.0),)},
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -0.5},
        {"allowed_token_ids": (4, 5, 6)},
        {"bad_words": ((4,),)},
        {"min_tokens": 3, "eos_token_ids": (5,)},
    ],
)
def test_one_row_that_asks_for_more_sends_all_to_the_sampler(model_dir, plans, sampling):
    runner = prefilled(model_dir, plans, {}, sampling, {})

    chosen, result = decode(runner, plans, [0, 1, 2])
    without, rest = decode(runner, plans, [0, 2])

    assert (chosen, without) == (False, True)
    assert (result.rows, rest.rows) == ([0, 1, 2], [0, 2])


def test_a_row_that_may_end_again_is_chosen_for(model_dir, plans):
    runner = prefilled(model_dir, plans, {"min_tokens": 3, "eos_token_ids": tuple(range(90))})

    steps = [decode(runner, plans, [0]) for _ in range(4)]

    assert [chosen for chosen, _ in steps] == [False, False, True, True]
    assert all(result.token_ids[0][0] >= 90 for _, result in steps[:2])


def test_a_plan_whose_rows_have_masks_waits_for_them(model_dir, plans):
    runner = prefilled(model_dir, plans, {}, {})
    plan = plans.step([0, 1], [1, 1], has_masks=True)
    handle = runner.launch(plan)
    only_token_70 = bytearray(12)
    only_token_70[70 // 8] = 1 << 70 % 8

    runner.sample(handle, TokenMasks(rows=[1], bits=memoryview(only_token_70)))

    assert handle.chosen is None
    assert handle.result().token_ids[1] == [70]


def test_a_row_whose_logits_are_not_finite_fails_alone(model_dir, plans):
    runner = prefilled(model_dir, plans, {}, {}, {})
    (key_of_second,) = (runner._kv_cache[2, 0, 0],)
    key_of_second.fill_(float("nan"))

    chosen, result = decode(runner, plans, [0, 1, 2])

    assert chosen
    assert result.failed == {1: FAILED_NOT_FINITE}
    assert len(result.token_ids) == 3


def test_each_shape_is_recorded_once_for_each_kind(model_dir, plans):
    recorder = CallRecorder()
    runner = road(model_dir, recorder)
    new = [plans.new(row, [1, 2, 3], [1 + row], temperature=float(row == 0)) for row in range(ROWS)]
    plans.run(runner, plans.step(range(ROWS), [3] * ROWS, new=new))

    for rows in ([0, 1], [1, 2], [0, 2], [3, 4], range(ROWS), range(1, ROWS)):
        plans.run(runner, plans.step(rows, [1] * len(rows)))

    graphs = runner._steps._graphs
    assert sorted(rows for rows, _ in graphs.shapes) == [1, 2, 2, 8, 8]  # that of one row was recorded while warming up
    assert graphs.num_choosing == 2
    assert runner.prepare() == 2 * len(graphs.all_shapes) - 1
    assert len(recorder.recordings) == 5


def test_rows_of_a_step_without_a_recording_go_to_the_sampler(model_dir, plans):
    runner = road(model_dir, CallRecorder(), enforce_eager=True)
    plans.run(runner, plans.step([0], [2], new=[plans.new(0, [1, 2], [1])]))

    chosen, result = decode(runner, plans, [0])

    recorded = road(model_dir, CallRecorder())
    plans.run(recorded, plans.step([0], [2], new=[plans.new(0, [1, 2], [1])]))
    assert not chosen
    assert decode(recorded, plans, [0])[1].token_ids == result.token_ids
    assert torch.equal(recorded._steps._rows.num_tokens, runner._steps._rows.num_tokens)
