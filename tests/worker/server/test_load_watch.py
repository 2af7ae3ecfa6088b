"""A slow load is left alone, a hung one is not."""

import os
from pathlib import Path

from quire_worker.server.load_watch import LoadWatch, Work, work_of

MIB = 1024 * 1024


class Load:
    """Processes whose counters, and the time, are what a test says."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.work: Work | None = Work(read_bytes=0, cpu_s=0.0)

    def after(self, seconds: float, *, read_bytes: int = 0, cpu_s: float = 0.0) -> None:
        """So much later, with so much more done."""
        self.now_s += seconds
        if self.work is not None:
            self.work = Work(read_bytes=self.work.read_bytes + read_bytes, cpu_s=self.work.cpu_s + cpu_s)


def watch_of(load: Load, timeout_s: float = 60) -> LoadWatch:
    watch = LoadWatch(timeout_s, lambda: load.now_s)
    watch.begin(lambda: load.work)
    return watch


def test_a_load_that_reads_slowly_for_hours_is_healthy() -> None:
    load = Load()
    watch = watch_of(load)

    for _ in range(1000):
        load.after(10, read_bytes=MIB)
        assert watch.problem() is None


def test_a_load_that_only_computes_is_healthy() -> None:
    load = Load()
    watch = watch_of(load)

    for _ in range(100):
        load.after(10, cpu_s=9)
        assert watch.problem() is None


def test_a_load_that_neither_reads_nor_computes_is_hung_after_its_timeout() -> None:
    load = Load()
    watch = watch_of(load)

    problems = []
    for _ in range(7):
        load.after(10, read_bytes=500, cpu_s=0.02)  # what idle threads cost
        problems.append(watch.problem())

    assert problems == [None] * 6 + ["the load has made no progress for 70 s"]


def test_progress_after_a_pause_starts_the_time_anew() -> None:
    load = Load()
    watch = watch_of(load)
    load.after(50)
    assert watch.problem() is None
    load.after(5, read_bytes=MIB)
    assert watch.problem() is None

    load.after(50)

    assert watch.problem() is None


def test_where_the_system_tells_nothing_the_timeout_bounds_the_whole_load() -> None:
    load = Load()
    load.work = None
    watch = watch_of(load)

    load.after(59)
    assert watch.problem() is None
    load.after(2)

    assert watch.problem() is not None


def test_a_process_sees_what_it_reads_itself(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(MIB))
    before = work_of(os.getpid())

    (tmp_path / "weights").read_bytes()
    after = work_of(os.getpid())

    assert before is not None
    assert after is not None
    assert after.read_bytes - before.read_bytes >= MIB
    assert work_of(2**22 + 1) is None
