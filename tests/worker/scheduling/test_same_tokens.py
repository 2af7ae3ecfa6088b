"""The same tokens, however they are computed; and the FakeRunner would notice if they were not."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from quire_worker.plan import Handle, Runner, StepPlan, TokenMasks

NUM_PROMPTS = 16


def prompts() -> list[list[int]]:
    """Mixed lengths, many with a common beginning."""
    rng = random.Random(7)
    shared = [rng.randrange(64) for _ in range(40)]
    return [
        shared[: rng.randrange(40)] + [rng.randrange(64) for _ in range(rng.randrange(1, 50))]
        for _ in range(NUM_PROMPTS)
    ]


def tokens_of(r: Any, *, n: int = 1, temperature: float = 0.0) -> dict[tuple[str, int], list[int]]:
    """Every prompt's tokens; the engine must be empty afterwards."""
    for index, prompt in enumerate(prompts()):
        rejection = r.submit(
            f"r{index}",
            prompt,
            n=n,
            temperature=temperature,
            seed=index,
            max_tokens=24,
            eos_token_ids=(3,),
            min_tokens=4,
        )
        assert rejection is None
    tokens: dict[tuple[str, int], list[int]] = r.run()
    assert r.num_used_blocks == 0
    assert len(r.ends) == NUM_PROMPTS * n
    return tokens


@pytest.mark.parametrize("windows", [(None,), (23,), (None, 21)], ids=["full", "window", "hybrid"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("caching", [True, False], ids=["cache", "no-cache"])
def test_cache_chunks_preemption_depth_and_batch_do_not_change_tokens(
    rig: Any, windows: Sequence[int | None], depth: int, caching: bool
) -> None:
    groups = len(windows)
    expected = tokens_of(rig(windows=windows, caching=False, rows=1, budget=4096, blocks=400))

    chunked = tokens_of(rig(windows=windows, caching=caching, depth=depth, budget=16, blocks=400))
    whole = tokens_of(rig(windows=windows, caching=caching, depth=depth, budget=4096, rows=32, blocks=800))
    small = rig(windows=windows, caching=caching, depth=depth, blocks=30 * groups, rows=32, budget=256)
    preempted = tokens_of(small)

    assert chunked == expected
    assert whole == expected
    assert preempted == expected
    assert small.scheduler.counters.num_preemptions > 0 or windows == (23,)  # windows alone need few blocks


@pytest.mark.parametrize("depth", [1, 2])
def test_seeded_choices_do_not_depend_on_preemption(rig: Any, depth: int) -> None:
    expected = tokens_of(rig(blocks=2000, rows=64, budget=4096), n=3, temperature=1.0)
    small = rig(blocks=40, depth=depth)

    tokens = tokens_of(small, n=3, temperature=1.0)

    assert tokens == expected
    assert small.scheduler.counters.num_preemptions > 0


class Saboteur:
    """A runner that carries out one plan wrongly."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._is_done = False

    def launch(self, plan: StepPlan) -> Handle:
        for new in plan.new_rows:
            if not self._is_done and new.num_computed >= 8:
                first, second, *_ = new.block_ids[0]
                new.block_ids[0][:2] = [second, first]
                self._is_done = True
        return self._runner.launch(plan)

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        self._runner.sample(handle, masks)

    def close(self) -> None:
        self._runner.close()


def test_two_swapped_entries_of_one_block_table_change_the_tokens(rig: Any) -> None:
    expected = tokens_of(rig())

    assert tokens_of(rig(wrap=Saboteur)) != expected


class CopyDropper(Saboteur):
    """Makes no copies."""

    def launch(self, plan: StepPlan) -> Handle:
        plan.copies.clear()
        return self._runner.launch(plan)


def test_a_copy_that_is_not_made_changes_the_tokens(rig: Any) -> None:
    expected = tokens_of(rig(), n=2, temperature=1.0)

    assert tokens_of(rig(wrap=CopyDropper), n=2, temperature=1.0) != expected


def test_unused_slots_are_less_than_four_percent_of_the_blocks_in_use(rig: Any) -> None:
    """Mean length 512 at block size 16: on average half of each last block is unused, 8 / 512."""
    rng = random.Random(3)
    r = rig(block_size=16, blocks=64 * 40, rows=64, budget=8192, max_model_len=2048, caching=False)
    for index in range(64):
        r.submit(f"r{index}", [rng.randrange(64) for _ in range(rng.randrange(200, 800))], max_tokens=40)
    wasted, reserved = 0, 0

    while r.scheduler.has_work:
        r.engine.step()
        for choice in r.scheduler._batch.running:
            if choice.num_computed >= choice.num_prompt:
                reserved += choice.capacity
                wasted += choice.capacity - choice.num_computed

    assert reserved > 0
    assert wasted / reserved < 0.04
