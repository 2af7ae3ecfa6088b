"""Small arrays from the host to the device: all of a step in one copy, from pinned memory that is used again and again.

An upload of its own for each array would cost a call, a copy and an allocation each. Pinned buffers take turns, because a copy reads its
buffer when the device gets there, which may be after the host has gone on to the next step.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.generic]

ALIGNMENT = 64
"""Bytes. Kernels load 16 at a time where an address allows it, and compile anew where it does not."""
NUM_BUFFERS = 3
"""One more than steps are in flight, so that no buffer has to be waited for."""


class Staging:
    """Sends arrays to one device. What `send` returns is overwritten by the next `send`, in the order of the stream."""

    def __init__(self, device: torch.device, capacity: int) -> None:
        """capacity: bytes that one `send` holds; more makes it grow."""
        self._device = device
        self._is_pinned = device.type == "cuda"
        self._next = 0
        self._make(capacity)

    def _make(self, capacity: int) -> None:
        self._capacity = capacity
        on_host = [torch.empty(capacity, dtype=torch.uint8, pin_memory=self._is_pinned) for _ in range(NUM_BUFFERS)]
        self._buffers = [(tensor, tensor.numpy()) for tensor in on_host]
        self._sent: list[torch.cuda.Event | None] = [None] * NUM_BUFFERS
        self._on_device = torch.empty(capacity, dtype=torch.uint8, device=self._device)

    def first(self, size: int, dtype: torch.dtype) -> Tensor:
        """Where the first array of every `send` lands, as long as none exceeds the capacity; for graphs, which know addresses only."""
        return self._on_device[: size * dtype.itemsize].view(dtype)

    def send(self, arrays: Sequence[Array]) -> list[Tensor]:
        """The arrays, of int64, int32 or float32, on the device. Does not wait for it."""
        starts = []
        end = 0
        for array in arrays:
            starts.append(end)
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if end > self._capacity:
            # Copies under way keep their pinned memory: torch's allocator hands it out again only after them.
            self._make(1 << (end - 1).bit_length())
        tensor, on_host = self._buffers[self._next]
        sent = self._sent[self._next]
        if sent is not None:
            sent.synchronize()
        for start, array in zip(starts, arrays, strict=True):
            on_host[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._on_device[:end].copy_(tensor[:end], non_blocking=True)
        if self._is_pinned:
            self._sent[self._next] = event = sent or torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._next = (self._next + 1) % NUM_BUFFERS
        return [
            self._on_device[start : start + array.nbytes].view(_DTYPES[array.dtype.str]).view(array.shape)
            for start, array in zip(starts, arrays, strict=True)
        ]


_DTYPES = {"<i8": torch.int64, "<i4": torch.int32, "<f4": torch.float32}
