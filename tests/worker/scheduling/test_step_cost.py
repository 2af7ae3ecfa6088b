"""What a step costs, fitted to steps whose costs are known; and that a saturated engine's prompts get what its decoding rows leave them."""

import random
from collections.abc import Iterator

import pytest

from quire_worker.scheduling.prefill_share import PrefillShare
from quire_worker.scheduling.speeds import LOOK_EVERY, StepSpeeds
from quire_worker.scheduling.step_cost import StepCosts

FIXED_S, ROW_S, TOKEN_S = 0.005, 0.0015, 0.0004


def true_s(num_rows: int, num_more: int) -> float:
    return FIXED_S + num_rows * ROW_S + num_more * TOKEN_S


def mixture(seed: int, num_steps: int) -> Iterator[tuple[int, int]]:
    """Rows and further tokens of steps of all kinds."""
    rng = random.Random(seed)
    for _ in range(num_steps):
        yield rng.randint(1, 32), rng.choice([0, 0, rng.randint(1, 400)])


def test_costs_are_found_in_steps_of_all_kinds() -> None:
    costs = StepCosts()

    for rows, more in mixture(1, 200):
        costs.add(rows, more, true_s(rows, more))

    assert costs.fixed_s == pytest.approx(FIXED_S, rel=0.1)
    assert costs.row_s == pytest.approx(ROW_S, rel=0.05)
    assert costs.token_s == pytest.approx(TOKEN_S, rel=0.05)


def test_noise_and_single_steps_that_hang_move_the_costs_little() -> None:
    costs, rng = StepCosts(), random.Random(2)

    for step, (rows, more) in enumerate(mixture(3, 400)):
        hangs = 100.0 if step % 40 == 39 else 1.0
        costs.add(rows, more, true_s(rows, more) * rng.uniform(0.85, 1.15) * hangs)

    assert costs.step_s(16) == pytest.approx(true_s(16, 0), rel=0.2)
    assert costs.token_s == pytest.approx(TOKEN_S, rel=0.2)


def test_a_machine_that_became_three_times_slower_is_believed_within_some_steps() -> None:
    costs = StepCosts()
    for rows, more in mixture(4, 200):
        costs.add(rows, more, true_s(rows, more))

    for rows, more in mixture(5, 60):
        costs.add(rows, more, 3 * true_s(rows, more))

    assert costs.step_s(16) == pytest.approx(3 * true_s(16, 0), rel=0.15)
    assert costs.token_s == pytest.approx(3 * TOKEN_S, rel=0.15)


def test_steps_that_are_all_alike_are_told_as_a_whole_and_leave_no_cost_negative() -> None:
    costs = StepCosts()
    costs.add(1, 999, true_s(1, 999))
    costs.add(1, 0, true_s(1, 0))

    for _ in range(5000):
        costs.add(24, 32, true_s(24, 32))

    assert costs.step_s(24, 32) == pytest.approx(true_s(24, 32), rel=0.01)
    assert min(costs.fixed_s, costs.row_s, costs.token_s) >= 0.0


def test_many_steps_at_once_tell_what_they_tell_one_by_one() -> None:
    single, at_once = StepCosts(), StepCosts()

    for rows, more in [(1, 999), (1, 0), (8, 0), (8, 100), (16, 200), (16, 0)] * 3:
        at_once.add(rows, more, true_s(rows, more), 20)
        for _ in range(20):
            single.add(rows, more, true_s(rows, more))

    assert at_once.step_s(12, 150) == pytest.approx(single.step_s(12, 150), rel=0.03)
    assert at_once.step_s(12) == pytest.approx(single.step_s(12), rel=0.05)


def test_nothing_is_said_before_a_prompt_was_seen_and_little_beyond_what_was_seen() -> None:
    costs = StepCosts()

    before = costs.most_tokens(8, 3.0)
    for _ in range(20):
        costs.add(8, 0, 0.008)
        costs.add(8, 20, 0.008)  # a device that waits for its memory anyway

    assert before is None
    assert costs.most_tokens(8, 3.0) == 40


@pytest.mark.parametrize("num_rows", [8, 24, 48])
def test_prompts_of_a_saturated_engine_get_their_share_whatever_was_seen_when_it_was_idle(num_rows: int) -> None:
    """No step ever decodes only unless the engine wants to see one."""
    speeds, rng = StepSpeeds(), random.Random(6)
    share = PrefillShare(max_slowdown=4.0, speeds=speeds)
    for _ in range(50):  # one request at a time: prompt, then answer
        speeds.add(500, 1, true_s(1, 499))
        for _ in range(20):
            speeds.add(1, 1, true_s(1, 0))
    counts, times = [], []

    for _ in range(6 * LOOK_EVERY):
        more = 0 if share.must_pause else share.limit(num_rows, 2048)
        time_s = true_s(num_rows, more) * rng.uniform(0.9, 1.1)
        speeds.add(num_rows + more, num_rows, time_s)
        counts.append(more)
        times.append(time_s)

    decoding_s = true_s(num_rows, 0)
    wanted = 2.5 * decoding_s / TOKEN_S
    settled = [more for more in counts[LOOK_EVERY:] if more]
    assert sum(settled) / len(settled) == pytest.approx(wanted, rel=0.25)
    assert sorted(times)[int(0.95 * len(times))] < 4.4 * decoding_s
    assert max(times) < 5 * decoding_s
    assert counts.count(0) <= len(counts) / LOOK_EVERY + 1
    assert speeds.decode_step_s == pytest.approx(decoding_s, rel=0.25)


def served_whole(seed: int, num_rows: int) -> tuple[StepSpeeds, PrefillShare, list[float]]:
    """What was learnt from prompts beside whole answers after some quiet requests; what decoding was thought to take, true being 1."""
    speeds, rng = StepSpeeds(), random.Random(seed)
    share = PrefillShare(max_slowdown=4.0, max_slowdown_unread=16.0, speeds=speeds)
    for _ in range(50):
        speeds.add(500, 1, true_s(1, 499) * rng.uniform(0.9, 1.1))
        for _ in range(20):
            speeds.add(1, 1, true_s(1, 0) * rng.uniform(0.9, 1.1))
    thought = []
    for _ in range(400):
        more = min(rng.choice([200, 1000, 4000]), share.limit(num_rows, 2048, is_streamed=False))
        speeds.add(num_rows + more, num_rows, true_s(num_rows, more) * rng.uniform(0.9, 1.1))
        thought.append(speeds.costs.step_s(num_rows) / true_s(num_rows, 0))
    return speeds, share, thought


@pytest.mark.parametrize("seed", range(5))
def test_many_times_longer_steps_beside_whole_answers_leave_known_what_decoding_takes(seed: int) -> None:
    speeds, _, thought = served_whole(seed, 24)

    assert max(thought) < 1.5
    assert min(thought) > 0.6
    assert speeds.costs.token_s == pytest.approx(TOKEN_S, rel=0.15)
    assert speeds.decode_step_s == pytest.approx(true_s(24, 0), rel=0.4)
    assert speeds.prefill_tokens_per_s == pytest.approx(1 / TOKEN_S, rel=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_that_comes_after_hours_of_whole_answers_is_protected_from_its_second_token_on(seed: int) -> None:
    speeds, share, _ = served_whole(seed, 24)
    first = 0 if share.must_pause else share.limit(25, 2048)

    speeds.add(25 + first, 25, true_s(25, first))
    times = []
    for _ in range(LOOK_EVERY):
        more = share.limit(25, 2048)
        speeds.add(25 + more, 25, true_s(25, more))
        times.append(true_s(25, more))

    assert first == 0
    assert max(times) < 4.5 * true_s(25, 0)
    assert times[-1] > 2.5 * true_s(25, 0)
