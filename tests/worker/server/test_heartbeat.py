"""Liveness by progress: silence and work without steps are problems, idleness is not."""

from quire_worker.engine.messages import Stats
from quire_worker.server.engine_client import Heartbeat


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def stats(num_steps: int, *, running: int = 0, waiting: int = 0) -> Stats:
    return Stats(
        num_steps=num_steps,
        num_running=running,
        num_waiting=waiting,
        num_free_blocks=1,
        num_blocks=2,
        num_preemptions=0,
        num_prompt_tokens=0,
        num_cached_tokens=0,
        num_generated_tokens=0,
        prefix_queries=0,
        prefix_hits=0,
    )


def hear(heartbeat: Heartbeat, message: Stats) -> None:
    heartbeat.on_message()
    heartbeat.on_stats(message)


def test_a_silent_engine_is_a_problem_after_the_timeout() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)

    clock.now_s += 30
    in_time = heartbeat.problem(30)
    clock.now_s += 1
    late = heartbeat.problem(30)

    assert in_time is None
    assert late == "the engine has been silent for 31 s"


def test_an_idle_engine_need_not_step() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)

    for _ in range(100):
        clock.now_s += 1
        hear(heartbeat, stats(7))

    assert heartbeat.problem(5) is None


def test_work_without_steps_is_a_problem_even_while_stats_come() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)
    hear(heartbeat, stats(7, running=1))

    for _ in range(10):
        clock.now_s += 1
        hear(heartbeat, stats(7, running=1))

    assert heartbeat.problem(5) == "the engine has had work but made no step for 10 s"


def test_a_waiting_request_is_work() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)

    for _ in range(10):
        clock.now_s += 1
        hear(heartbeat, stats(0, waiting=1))

    assert heartbeat.problem(5) is not None


def test_steps_are_progress() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)

    for step in range(100):
        clock.now_s += 1
        hear(heartbeat, stats(step, running=3))

    assert heartbeat.problem(5) is None
