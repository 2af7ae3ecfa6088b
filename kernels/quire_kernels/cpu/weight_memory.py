"""Memory for weights in huge pages: a step of few rows reads all of them once, and with small pages waits for address translations.

    chunk   |--2 MiB--|--2 MiB--|--2 MiB--|...      one mapping, huge pages asked for
    tensors |a  |b      |c          |free           64-byte steps; a page nobody wrote to takes no memory

Nothing is given back on its own: a chunk lives as long as the last tensor in it.
"""

import mmap

import torch
from torch import Tensor

_HUGE_PAGE = 2 * 1024 * 1024
_CHUNK = 64 * 1024 * 1024
_ALIGNMENT = 64


class WeightMemory:
    """Hands out zeroed tensors."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def zeros(self, size_bytes: int) -> Tensor:
        """[size_bytes] uint8, aligned to 64 bytes, nothing touched yet."""
        needed = -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
        if self._chunk.numel() - self._used < needed:
            self._chunk = _map(max(needed, _CHUNK))
            self._used = 0
        start = self._used
        self._used += needed
        return self._chunk[start : start + size_bytes]


def _map(size_bytes: int) -> Tensor:
    """At least so many bytes from a huge page's start on."""
    length = -(-size_bytes // _HUGE_PAGE) * _HUGE_PAGE + _HUGE_PAGE
    # Private: shared memory, the default, has huge pages only where the system says so apart.
    mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    skipped = -whole.data_ptr() % _HUGE_PAGE
    return whole[skipped : whole.numel() - _HUGE_PAGE + skipped]
