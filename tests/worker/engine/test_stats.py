"""When and what the engine reports."""

from typing import Any

import pytest

from quire_worker.engine.stats import Pace, StatsCollector
from quire_worker.scheduling.speeds import StepSpeeds


def test_the_first_report_is_due_at_once() -> None:
    assert Pace().wait_s(123.0) == 0.0


def test_a_change_is_reported_after_a_tenth_of_a_second_and_silence_after_one() -> None:
    pace = Pace()
    pace.on_sent(10.0)

    quiet = pace.wait_s(10.02)
    pace.on_change()

    assert quiet == pytest.approx(0.98)
    assert pace.wait_s(10.02) == pytest.approx(0.08)
    assert pace.wait_s(10.2) == 0.0


def test_times_are_told_once_and_counters_stay(rig: Any) -> None:
    r = rig()
    stats = StatsCollector(r.scheduler, r.info.num_blocks)
    r.submit("a", 8, max_tokens=2)
    r.step()
    stats.add_step(8, 0.5)

    first, second = stats.take(), stats.take()

    assert (first.step_tokens, first.step_time_s, first.queue_time_s) == ([8], [0.5], [0.0])
    assert (second.step_tokens, second.queue_time_s) == ([], [])
    assert first.num_steps == second.num_steps == 1
    assert first.num_prompt_tokens == 8
    assert first.num_running == 1


def test_prefill_speed_and_decode_time_are_told_apart() -> None:
    speeds = StepSpeeds()

    for _ in range(5):
        speeds.add(1000, 1, 0.5)
        speeds.add(8, 8, 0.02)
    speeds.add(12, 8, 99.0)  # a few prompt tokens among decodes, and a machine that hung

    assert speeds.prefill_tokens_per_s == 2000
    assert speeds.decode_step_s == pytest.approx(0.02, rel=0.1)


def test_where_every_step_has_prompts_the_time_to_decode_follows_the_rows_that_there_are() -> None:
    speeds = StepSpeeds()
    for _ in range(20):
        speeds.add(200, 1, 0.105)
        speeds.add(1, 1, 0.006)

    for step in range(200):
        rows, more = 16 + step % 8, 40 + step % 5
        speeds.add(rows + more, rows, 0.005 + rows * 0.001 + more * 0.0005)

    assert speeds.decode_step_s == pytest.approx(0.025, rel=0.2)


def test_a_call_that_committed_nothing_is_no_step() -> None:
    speeds = StepSpeeds()

    speeds.add(0, 3, 0.01)

    assert speeds.decode_step_s == 0.0
    assert speeds.wants_decoding
