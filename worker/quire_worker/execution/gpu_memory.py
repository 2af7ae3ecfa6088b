"""What a GPU has left for the KV pool, found by trial: a step as large as any, and the memory that recorded steps keep."""

import logging
from collections.abc import Callable

import torch

from quire_worker.execution.graphs import Recorder
from quire_worker.execution.runner import TorchRunner

_log = logging.getLogger(__name__)


def gpu_free_bytes(
    *,
    make: Callable[[Recorder | None], TorchRunner],
    try_largest: Callable[[TorchRunner], None],
    release: Callable[[], None],
    recorder: Recorder | None,
    share: float,
) -> int:
    """Bytes that `share` of the device's memory leaves. `make` builds a runner with few blocks and rows of full length, `release` drops its
    cache; recorder None: nothing is recorded."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    runner = make(None)
    try_largest(runner)
    torch.cuda.synchronize()
    in_steps = torch.cuda.max_memory_allocated() - before
    runner.close()
    del runner
    release()
    in_graphs = 0 if recorder is None else _bytes_of_graphs(make(recorder))
    release()
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    reserve = int(total_bytes * (1 - share))
    _log.info(
        "gpu memory total=%d free=%d steps=%d graphs=%d reserve=%d",
        total_bytes, free_bytes, in_steps, in_graphs, reserve,
    )  # fmt: skip
    return free_bytes - in_steps - in_graphs - reserve


def _bytes_of_graphs(runner: TorchRunner) -> int:
    """The largest recording's, and for each of the others what a second one takes beside it: memory is shared, launches are not."""
    start = _free()
    runner.prepare()
    first = _free()
    num_others = runner.prepare(is_smallest=True)
    second = _free()
    runner.close()
    return start - first + num_others * max(0, first - second)


def _free() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]
