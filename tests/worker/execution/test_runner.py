"""The runner carries out plans as plan.py says."""

import pytest
import torch

from quire_worker.errors import DeviceError, StepMemoryError
from quire_worker.plan import StepPlan, TokenMasks

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28]


@pytest.fixture
def tokens_alone(runner, plans):
    """PROMPT's first nine greedy tokens, computed in one go."""
    first = plans.run(runner, plans.step([7], [len(PROMPT)], new=[plans.new(7, PROMPT, [30, 31])]))[7]
    return [first, *plans.continue_rows(runner, [7], 8)[7]]


def test_an_empty_plan_samples_nothing(runner, plans):
    handle = runner.launch(plans.step([], []))
    runner.sample(handle, None)

    assert handle.result().rows == []


def test_a_row_is_sampled_only_when_all_its_tokens_are_computed(runner, plans, tokens_alone):
    first = plans.run(runner, plans.step([2], [5], new=[plans.new(2, PROMPT, [4, 9])]))
    second = plans.run(runner, plans.step([2], [12]))
    third = plans.run(runner, plans.step([2], [1]))

    assert first == second == {}
    assert third == {2: tokens_alone[0]}


def test_rows_decode_and_prefill_in_one_step_in_the_plans_order(runner, plans, tokens_alone):
    plans.run(runner, plans.step([5], [len(PROMPT)], new=[plans.new(5, PROMPT, [1, 2])]))

    new = plans.new(1, [*PROMPT, *tokens_alone[:3]], [3, 4], num_prompt=len(PROMPT))
    handle = runner.launch(plans.step([5, 1], [1, len(new.token_ids)], new=[new]))
    runner.sample(handle, None)

    result = handle.result()
    assert result.rows == [5, 1]
    assert result.token_ids == [[tokens_alone[1]], [tokens_alone[3]]]


def test_the_next_plan_may_be_launched_before_the_tokens_are_known(runner, plans, tokens_alone):
    first = runner.launch(plans.step([0], [len(PROMPT)], new=[plans.new(0, PROMPT, [1, 2])]))
    runner.sample(first, None)
    second = runner.launch(plans.step([0], [1]))
    runner.sample(second, None)

    assert first.result().token_ids == [[tokens_alone[0]]]
    assert second.result().token_ids == [[tokens_alone[1]]]


def test_blocks_appended_in_a_later_step_are_used(runner, plans, tokens_alone):
    plans.run(runner, plans.step([0], [16], new=[plans.new(0, PROMPT, [6])]))

    tokens = plans.run(runner, plans.step([0], [2], grown=[(0, 0, [17])]))

    assert tokens == {0: tokens_alone[0]}
    assert plans.continue_rows(runner, [0], 8)[0] == tokens_alone[1:]


def test_a_row_may_begin_with_blocks_that_another_has_computed(runner, plans, tokens_alone):
    plans.run(runner, plans.step([0], [len(PROMPT)], new=[plans.new(0, PROMPT, [1, 2])]))

    new = plans.new(3, PROMPT, [1, 8], num_computed=16)
    tokens = plans.run(runner, plans.step([3], [2], new=[new]))

    assert tokens == {3: tokens_alone[0]}


def test_what_a_blocks_former_owner_left_spoils_nobody(runner, plans, tokens_alone):
    runner._kv_cache[1:].fill_(float("nan"))  # all but the null block, which nothing ever writes

    first = plans.run(runner, plans.step([0], [len(PROMPT)], new=[plans.new(0, PROMPT, [1, 2])]))[0]
    grown = plans.run(runner, plans.step([4], [16], new=[plans.new(4, PROMPT, [6])]))
    second = plans.run(runner, plans.step([4], [2], grown=[(4, 0, [17])]))[4]

    assert grown == {}
    assert first == second == tokens_alone[0]


def test_copies_are_made_before_anything_is_computed(runner, plans, tokens_alone):
    plans.run(runner, plans.step([0], [len(PROMPT)], new=[plans.new(0, PROMPT, [1, 2])]))

    # The fork owns a copy of the half-filled block; what it writes there leaves the other row alone.
    fork = plans.new(1, [*PROMPT[:17], 60], [1, 9], num_computed=17)
    plans.run(runner, plans.step([1], [1], new=[fork], copies=[(2, 9)]))

    assert plans.continue_rows(runner, [0], 8)[0] == tokens_alone[1:]
    alone = plans.new(2, [*PROMPT[:17], 60], [10, 11])
    expected = plans.run(runner, plans.step([2], [18], new=[alone]))[2]
    again = plans.new(3, [*PROMPT[:17], 60], [1, 12], num_computed=17)
    assert plans.run(runner, plans.step([3], [1], new=[again], copies=[(9, 12)])) == {3: expected}


def test_a_replaced_table_entry_is_read_instead(runner, plans, tokens_alone):
    plans.run(runner, plans.step([0], [len(PROMPT)], new=[plans.new(0, PROMPT, [1, 2])]))

    step = plans.step([0], [1], copies=[(2, 20), (1, 21)], replaced=[(0, 0, 0, 21), (0, 0, 1, 20)])
    first = plans.run(runner, step)
    scribble = plans.new(1, PROMPT[::-1], [1, 2])
    plans.run(runner, plans.step([1], [len(PROMPT)], new=[scribble]))

    assert [first[0], *plans.continue_rows(runner, [0], 7)[0]] == tokens_alone[1:]


def test_a_row_may_be_freed_and_set_up_again_in_one_plan(runner, plans, tokens_alone):
    sampling = {"temperature": 1.0, "seed": 4, "frequency_penalty": 1.0, "logit_bias": ((5, 50.0),)}
    plans.run(runner, plans.step([0], [3], new=[plans.new(0, [1, 2, 3], [1], **sampling)]))

    plan = plans.step([0], [len(PROMPT)], freed=[0], new=[plans.new(0, PROMPT, [1, 2])])

    assert plans.run(runner, plan) == {0: tokens_alone[0]}


def test_a_preempted_row_goes_on_where_it_stopped(runner, plans, tokens_alone):
    sampling = {"temperature": 1.0, "seed": 9, "frequency_penalty": 0.8, "repetition_penalty": 1.2}
    new = plans.new(0, PROMPT, [1, 2, 3], **sampling)
    first = plans.run(runner, plans.step([0], [len(PROMPT)], new=[new]))[0]
    whole = [first, *plans.continue_rows(runner, [0], 9)[0]]

    known = [*PROMPT, *whole[:6]]
    back = plans.new(4, known, [5, 6, 7], num_prompt=len(PROMPT), **sampling)
    resumed = plans.run(runner, plans.step([4], [len(known)], freed=[0], new=[back]))[4]

    assert [resumed, *plans.continue_rows(runner, [4], 3)[4]] == whole[6:]


def test_a_mask_forbids_every_token_whose_bit_is_not_set(runner, plans):
    allowed = bytearray(12)
    for token_id in (9, 95):
        allowed[token_id // 8] |= 1 << token_id % 8
    masks = TokenMasks(rows=[1], bits=memoryview(allowed))
    new = [plans.new(row, PROMPT, [1 + 2 * row, 2 + 2 * row]) for row in (0, 1)]

    tokens = plans.run(runner, plans.step([0, 1], [len(PROMPT)] * 2, new=new), masks)

    assert tokens[1] in (9, 95)
    assert tokens[0] not in (9, 95)


def test_a_bias_chooses_and_min_tokens_forbids(runner, plans):
    biased = {"logit_bias": ((42, 100.0),)}
    new = [
        plans.new(0, PROMPT, [1, 2], **biased),
        plans.new(1, PROMPT, [3, 4], **biased, eos_token_ids=(42, 50_000), min_tokens=2),
        plans.new(2, PROMPT, [5, 6], **biased, stop_token_ids=(42,), eos_token_ids=(1,), min_tokens=1),
    ]

    steps = [plans.run(runner, plans.step([0, 1, 2], [len(PROMPT)] * 3, new=new))]
    steps += [plans.run(runner, plans.step([0, 1, 2], [1] * 3)) for _ in range(2)]

    assert [step[0] == 42 for step in steps] == [True, True, True]
    assert [step[1] == 42 for step in steps] == [False, False, True]
    assert [step[2] == 42 for step in steps] == [False, True, True]


def test_equal_logits_give_the_lowest_id(runner, plans):
    runner._steps._model._head = lambda x: torch.zeros(x.shape[0], 96)

    assert plans.run(runner, plans.step([0], [3], new=[plans.new(0, [1, 2, 3], [1])])) == {0: 0}


def test_many_rows_with_penalties_get_tables_as_they_come(runner, plans):
    # Each row is told apart by its own strong penalty: alone or with the others, it gets the same token.
    def new(row, blocks):
        return plans.new(row, PROMPT, blocks, presence_penalty=2.0, logit_bias=((row, 9.0),))

    together = [new(row, [1 + 2 * row, 2 + 2 * row]) for row in range(8)]
    plans.run(runner, plans.step(range(8), [len(PROMPT)] * 8, new=together))
    tokens = plans.continue_rows(runner, list(range(8)), 3)

    for row in range(8):
        plans.run(runner, plans.step([row], [len(PROMPT)], freed=[row], new=[new(row, [20, 21])]))
        assert plans.continue_rows(runner, [row], 3)[row] == tokens[row]


def test_a_device_that_stays_broken_is_told_apart_from_a_step_that_failed(runner, plans):
    def failing(error):
        def head(x):
            raise error

        return head

    runner._steps._model._head = failing(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DeviceError, match="illegal memory access"):
        runner.launch(plans.step([0], [3], new=[plans.new(0, [1, 2, 3], [1])]))

    runner._steps._model._head = failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(StepMemoryError, match="CUDA out of memory; lower --max-num-batched-tokens"):
        runner.launch(plans.step([0], [3], freed=[0], new=[plans.new(0, [1, 2, 3], [1])]))


def test_plans_are_plain_messages(plans):
    import msgspec

    plan = plans.step([0], [18], new=[plans.new(0, PROMPT, [1, 2])], copies=[(1, 2)])

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=StepPlan) == plan
