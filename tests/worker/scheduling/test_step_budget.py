"""Steps become smaller when memory runs out, and by and by as large as before."""

from quire_worker.scheduling.step_budget import PATIENCE, StepBudget


def test_each_step_that_finds_no_memory_halves_the_next_ones_down_to_the_least() -> None:
    budget = StepBudget(most=100, least=8)

    sizes = []
    while budget.on_no_memory(budget.num_tokens):
        sizes.append(budget.num_tokens)

    assert sizes == [50, 25, 12, 8]
    assert budget.num_tokens == 8


def test_a_small_step_that_finds_no_memory_bounds_the_next_ones_below_itself() -> None:
    budget = StepBudget(most=100, least=8)

    assert budget.on_no_memory(20)
    assert budget.num_tokens == 10
    assert budget.on_no_memory(30)
    assert budget.num_tokens == 10


def test_after_many_good_steps_twice_as_many_tokens_are_tried_until_it_is_as_before() -> None:
    budget = StepBudget(most=100, least=8)
    budget.on_no_memory(60)

    sizes = {0: budget.num_tokens}
    for step in range(1, 3 * PATIENCE + 1):
        budget.on_good_step()
        if budget.num_tokens != list(sizes.values())[-1]:
            sizes[step] = budget.num_tokens

    assert sizes == {0: 30, PATIENCE: 60, 2 * PATIENCE: 100}
