"""Decode steps recorded once and replayed, so that a step costs the host one call instead of hundreds.

    shape    (rows, table width)   what a recording is made for: its launches depend on nothing else
    rows     1, 2, 4, 8, 16, 24, ... 256; a step of fewer rows is padded with rows that read and write nothing
    kind     a recording ends with the rows' logits, or chooses the largest of them and ends with tokens

A recording is made when its shape first occurs. Recordings share their memory, as only one runs at a time and what it leaves is used
before the next: the largest should come first, so that the others fit in what it took. Knows nothing of models or rows: it records a call.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch

_log = logging.getLogger(__name__)

MAX_ROWS = 256
"""Beyond it a step's launches are hidden behind the device's work."""
WIDTH_STEP = 4
"""From one table width to the next."""


class Recording(Protocol):
    """Launches that were recorded."""

    def replay(self) -> None:
        """Do them again, on the same memory."""
        ...


class Recorder(Protocol):
    """Makes recordings."""

    def record(self, call: Callable[[], None]) -> Recording:
        """The launches of `call`, which is made at least once. Raises whatever keeps it from being recorded."""
        ...

    def reset(self) -> None:
        """All recordings are gone; later ones share new memory."""
        ...


class CudaRecorder:
    """Records CUDA graphs that share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, call: Callable[[], None]) -> Recording:
        """See Recorder. Waits for the device."""
        # First for real, on the stream that will record: kernels are compiled and libraries take their workspaces, neither of which can be
        # recorded.
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            call()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of the process may go on allocating.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            call()
        return graph

    def reset(self) -> None:
        """See Recorder."""
        self._pool = torch.cuda.graph_pool_handle()


Shape = tuple[int, int]
"""Rows and table width in blocks."""


class DecodeGraphs:
    """The recordings of one runner."""

    def __init__(self, recorder: Recorder, *, max_rows: int, widths: tuple[int, ...]) -> None:
        """widths: blocks, ascending; the last holds every row."""
        self.sizes = decode_sizes(max_rows)
        self._widths = widths
        self._recorder: Recorder | None = recorder
        self._recordings: dict[tuple[Shape, bool], Recording] = {}

    @property
    def shapes(self) -> list[Shape]:
        """Of the recordings there are, in the order they were made; those of both kinds twice."""
        return [shape for shape, _ in self._recordings]

    @property
    def num_choosing(self) -> int:
        """Recordings that end with tokens."""
        return sum(chooses for _, chooses in self._recordings)

    @property
    def all_shapes(self) -> list[Shape]:
        """Those that may ever be recorded, ascending: the last one's memory is enough for all, of either kind."""
        return [(rows, width) for rows in self.sizes for width in self._widths]

    def shape_for(self, num_rows: int, num_blocks: int) -> Shape | None:
        """The least shape that holds the step; None if there is none."""
        rows = next((size for size in self.sizes if size >= num_rows), None)
        width = next((width for width in self._widths if width >= num_blocks), None)
        return None if rows is None or width is None else (rows, width)

    @property
    def is_recording(self) -> bool:
        """False once a recording has failed: there will be no more."""
        return self._recorder is not None

    def forget(self) -> None:
        """Let go of all recordings, and of their memory: what they know of the device no longer holds."""
        self._recordings.clear()
        if self._recorder is not None:
            self._recorder.reset()

    def find(self, shape: Shape, *, chooses: bool = False) -> Recording | None:
        """That of the shape and kind, if there is one."""
        return self._recordings.get((shape, chooses))

    def record(self, shape: Shape, call: Callable[[], None], *, chooses: bool = False) -> Recording | None:
        """That of the shape and kind, made from `call`; None if it cannot be made.

        The inputs that the call finds must be all padding: it is made once and more."""
        assert self._recorder is not None
        try:
            found = self._recorder.record(call)
        except Exception as error:  # noqa: BLE001 - whatever it is, steps can do without; a broken device fails the step itself
            _log.warning(
                "decode graph not recorded rows=%d table_width=%d reason=%s: %s; further shapes run without graphs, "
                "as all do with --enforce-eager",
                *shape,
                type(error).__name__,
                error,
            )
            self._recorder = None
            return None
        self._recordings[shape, chooses] = found
        return found


def decode_sizes(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows to record for batches of up to max_rows; the last holds max_rows or MAX_ROWS."""
    most = min(max_rows, MAX_ROWS)
    sizes = [1, 2, 4, *range(8, MAX_ROWS + 1, 8)]
    return tuple(size for i, size in enumerate(sizes) if i == 0 or sizes[i - 1] < most)


def table_widths(num_blocks: int, first: int | None) -> tuple[int, ...]:
    """first, 4 first, 16 first, ... below num_blocks, then num_blocks; None: num_blocks alone."""
    widths = []
    width = first
    while width is not None and width < num_blocks:
        widths.append(width)
        width *= WIDTH_STEP
    return (*widths, num_blocks)
