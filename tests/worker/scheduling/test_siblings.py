"""n > 1: one choice computes the prompt, the others fork it."""

from typing import Any

import pytest


def test_siblings_wait_for_the_leader_and_then_compute_one_token_each(rig: Any) -> None:
    r = rig()
    r.submit("a", 10, n=3)

    first, result = r.launch()
    waiting = r.scheduler.num_waiting
    r.scheduler.commit(first, result)
    second, _ = r.launch()

    assert (first.num_tokens, waiting) == ([10], 2)
    assert [new.num_computed for new in second.new_rows] == [9, 9]
    assert second.num_tokens == [1, 1, 1]


def test_siblings_share_full_blocks_and_copy_the_last_one(rig: Any) -> None:
    r = rig()
    r.submit("a", 10, n=3)
    r.step()
    plan, _ = r.launch()

    tables = [new.block_ids[0] for new in plan.new_rows]

    assert tables[0][:2] == tables[1][:2]
    assert tables[0][2] != tables[1][2]
    assert sorted(destination for _, destination in plan.copies) == sorted(table[2] for table in tables)
    assert r.num_used_blocks == 2 + 3


def test_siblings_fork_without_a_prefix_cache_too(rig: Any) -> None:
    r = rig(caching=False)
    r.submit("a", 10, n=2)
    r.step()

    plan, _ = r.launch()

    assert plan.num_tokens == [1, 1]


def test_the_copied_block_is_held_until_the_copy_is_made(rig: Any) -> None:
    r = rig(depth=2)
    r.submit("a", 10, n=2, max_tokens=2)
    first, second = r.launch(), r.launch()
    r.scheduler.commit(*first)
    third = r.launch()  # the sibling forks; the leader's last token is on its way, so it is not part of this step

    r.scheduler.commit(*second)  # the leader ends and gives up its blocks
    source, _ = third[0].copies[0]
    held = not r.pool.is_idle(source)
    r.scheduler.commit(*third)

    assert ("a", 0) not in {(c.request_id, c.index) for c in r.scheduler._batch.running}
    assert held
    assert r.pool.is_idle(source)


def test_siblings_that_do_not_fit_queue_and_find_the_prompt_cached(rig: Any) -> None:
    r = rig(rows=2)
    r.submit("a", 10, n=3, max_tokens=3)

    tokens = r.run()

    assert set(tokens) == {("a", 0), ("a", 1), ("a", 2)}
    assert r.scheduler.counters.prefix_hits == 8


def test_siblings_of_a_leader_that_ends_with_its_first_token_still_come(rig: Any) -> None:
    r = rig()
    r.submit("a", 10, n=3, max_tokens=1)

    tokens = r.run()

    assert [len(tokens["a", i]) for i in range(3)] == [1, 1, 1]


def test_the_oldest_sibling_leads_when_the_leader_is_aborted(rig: Any) -> None:
    r = rig(budget=4)
    r.submit("a", 10, n=3)
    r.step()

    r.scheduler.abort("a", 0)
    tokens = r.run()

    assert set(tokens) == {("a", 1), ("a", 2)}


def test_an_aborted_sibling_is_not_forked(rig: Any) -> None:
    r = rig(budget=4)
    r.submit("a", 10, n=3)
    r.step()

    r.scheduler.abort("a", 1)

    assert set(r.run()) == {("a", 0), ("a", 2)}
    assert r.scheduler.num_waiting == 0


def test_aborting_the_request_ends_leader_and_siblings(rig: Any) -> None:
    r = rig(budget=4)
    r.submit("a", 10, n=3)
    r.step()

    r.scheduler.abort("a")

    assert not r.scheduler.has_work
    assert r.scheduler.num_waiting == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("caching", [True, False])
def test_n_choices_bring_what_n_requests_with_their_seeds_bring(rig: Any, depth: int, caching: bool) -> None:
    prompt = list(range(13))
    together = rig(depth=depth, caching=caching, rows=3, blocks=30)
    together.submit("a", prompt, n=4, temperature=1.0, seed=2**64 - 2, max_tokens=20)
    apart = rig()
    for index, seed in enumerate((2**64 - 2, 2**64 - 1, 0, 1)):
        apart.submit(f"a{index}", prompt, temperature=1.0, seed=seed, max_tokens=20)

    tokens = together.run()
    expected = apart.run()

    assert [tokens["a", i] for i in range(4)] == [expected[f"a{i}", 0] for i in range(4)]
