"""A GPU's road without one: what stands in for CUDA graphs, and what refuses to wait for the device.

Shared by tests that run the road in their own process and by the script that runs it in Triton's interpreter.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from quire_worker.execution.graphs import Recording

_WAITS = {
    "item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__len_hint__", "nonzero",
    "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "equal", "allclose", "synchronize", "is_nonzero",
    "repeat_interleave",
}  # fmt: skip
"""Functions of torch that need a tensor's numbers, or a shape that depends on them, on the host."""


class Again:
    """A recorded call that is made again."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        self._call()


class CallRecorder:
    """A graphs.Recorder for a CPU: the call itself is the recording."""

    def __init__(self) -> None:
        self.recordings: list[Again] = []

    def record(self, call: Callable[[], None]) -> Recording:
        call()
        self.recordings.append(Again(call))
        return self.recordings[-1]

    def reset(self) -> None:
        self.recordings.clear()


class NoWaiting(TorchFunctionMode):
    """Refuses what waits for a GPU, wherever the project's own code asks for it. A reference implementation may."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args) and (caller := _caller()) is not None:
            raise AssertionError(f"{func.__name__} in {caller} waits for the device")
        return func(*args, **kwargs)


class NothingLaunched(TorchFunctionMode):
    """Refuses every function of torch: on a GPU each would launch something."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in ("__get__", "shape"):
            raise AssertionError(f"{name} was launched")
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: tuple[Any, ...]) -> bool:
    name = getattr(func, "__name__", "")
    if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
        places = args[1] if isinstance(args[1], tuple | list) else (args[1],)
        return any(isinstance(place, torch.Tensor) and place.dtype == torch.bool for place in places)
    return name in _WAITS


def _caller() -> str | None:
    """Who called, if it is code that a GPU's steps run through."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "triton" in path.parts or path.name == "interpreter.py":
            return None  # the interpreter's own arithmetic
        if "quire_kernels" in path.parts:
            is_reference = "gpu" not in path.parts
            return None if is_reference else f"{path.name}:{frame.f_lineno}"
        if "quire_worker" in path.parts:
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return None
