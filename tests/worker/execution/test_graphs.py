"""Which decode steps are recorded, and what is done with recordings."""

import pytest
from device_road import CallRecorder

from quire_worker.execution.graphs import DecodeGraphs, decode_sizes, table_widths


def test_sizes_grow_by_eight_up_to_256() -> None:
    sizes = decode_sizes(1024)

    assert sizes == (1, 2, 4, *range(8, 257, 8))
    assert len(sizes) == 35


@pytest.mark.parametrize(
    ("max_rows", "sizes"), [(1, (1,)), (3, (1, 2, 4)), (4, (1, 2, 4)), (9, (1, 2, 4, 8, 16)), (256, decode_sizes(300))]
)
def test_the_largest_size_holds_the_largest_batch(max_rows: int, sizes: tuple[int, ...]) -> None:
    assert decode_sizes(max_rows) == sizes


def test_widths_are_one_or_grow_by_four() -> None:
    assert table_widths(9, None) == (9,)
    assert table_widths(8193, 256) == (256, 1024, 4096, 8193)
    assert table_widths(200, 256) == (200,)


def test_a_step_takes_the_least_shape_that_holds_it() -> None:
    graphs = DecodeGraphs(CallRecorder(), max_rows=16, widths=(4, 16))

    assert graphs.shape_for(1, 1) == (1, 4)
    assert graphs.shape_for(3, 5) == (4, 16)
    assert graphs.shape_for(9, 4) == (16, 4)
    assert graphs.shape_for(17, 1) is None
    assert graphs.shape_for(1, 17) is None
    assert graphs.all_shapes[0] == (1, 4)
    assert graphs.all_shapes[-1] == (16, 16)


def test_a_recording_is_found_again() -> None:
    graphs, made = DecodeGraphs(CallRecorder(), max_rows=2, widths=(4,)), []

    recording = graphs.record((2, 4), lambda: made.append(1))
    assert recording is not None
    recording.replay()

    assert graphs.find((2, 4)) is recording
    assert graphs.find((1, 4)) is None
    assert graphs.shapes == [(2, 4)]
    assert made == [1, 1]


class BrokenRecorder(CallRecorder):
    def record(self, call):
        raise RuntimeError("no graphs here")


def test_after_a_failure_nothing_is_recorded_any_more(caplog: pytest.LogCaptureFixture) -> None:
    graphs = DecodeGraphs(BrokenRecorder(), max_rows=2, widths=(4,))

    assert graphs.record((2, 4), list) is None

    assert not graphs.is_recording
    assert "rows=2 table_width=4 reason=RuntimeError: no graphs here" in caplog.text
