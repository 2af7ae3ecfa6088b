"""When refused clients are told to come back."""

from quire_worker.engine.retry_advice import RetryAdvice
from quire_worker.scheduling.counters import Counters
from quire_worker.scheduling.speeds import StepSpeeds


def advice(*, decode_step_s: float = 0.0, prefill_tokens_per_s: float = 0.0, rows: int = 10) -> RetryAdvice:
    """After choices with prompts of 500 tokens and outputs of 100."""
    speeds, counters = StepSpeeds(), Counters()
    speeds.decode_step_s, speeds.prefill_tokens_per_s = decode_step_s, prefill_tokens_per_s
    counters.on_first_admission(500, 0, 0.0)
    counters.on_end(100)
    return RetryAdvice(speeds, counters, rows)


def test_before_anything_is_measured_it_is_one_second() -> None:
    assert advice().on_refused(5, 0.0) == 1
    assert advice().for_queue(1000) == 1


def test_rows_come_free_as_outputs_end() -> None:
    """Ten rows, 100 tokens of 20 ms: five choices a second."""
    made = advice(decode_step_s=0.02)

    assert [made.on_refused(n, 0.0) for n in (1, 9, 10)] == [1, 2, 4]
    assert made.for_queue(60) == 12


def test_prompts_may_be_what_takes_the_time() -> None:
    """1000 tokens a second, 500 a prompt: two choices a second."""
    made = advice(decode_step_s=0.02, prefill_tokens_per_s=1000.0)

    assert made.for_queue(60) == 30


def test_those_who_were_refused_before_come_first_and_their_time_passes() -> None:
    made = advice(decode_step_s=0.02)

    at_once = [made.on_refused(5, 0.0) for _ in range(4)]
    later = made.on_refused(5, 100.0)

    assert at_once == [1, 2, 3, 4]
    assert later == 1


def test_it_is_never_more_than_a_minute_however_many_are_refused() -> None:
    made = advice(decode_step_s=0.02)

    crowd = [made.on_refused(100, 0.0) for _ in range(1000)]

    assert max(crowd) == 60
    assert made.on_refused(1, 90.0) == 1
    assert made.for_queue(10**6) == 60
