"""How a runner sleeps: what is dear on its device is given back, what it costs to read again is kept in the host's memory.

    on a CPU    the KV pool's pages go back to the system; the weights stay as they are, which is where a GPU's would go
    on a GPU    the KV pool's memory is freed and recorded steps are forgotten; weights go to pinned host memory, and from there back

Addresses: a CPU's stay. A GPU's do not, but every tensor stays: views share one storage, whose memory is freed and made again beneath them,
so nothing that holds a tensor need know. What holds addresses must be forgotten (recorded steps) and made anew.

Weights never change, so their copy is made once: a second sleep only frees.
"""

import contextlib
import ctypes
import functools
import mmap
import os
import types
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, UntypedStorage

from quire_worker.errors import WakeError

CHUNK_BYTES = 1 << 28
"""Of pinned memory; a power of two, as torch rounds up to one."""
_MADVISE_BYTES = 1 << 30
_MADV_DONTNEED = 4


class Steps(Protocol):
    """What knows addresses of the device's memory."""

    def forget(self) -> None:
        """Let go of everything that was recorded."""
        ...

    def prepare(self) -> int:
        """Record what is recorded before anything is served."""
        ...


class HostDormancy:
    """Of a model on a CPU."""

    def __init__(self, kv_cache: Tensor | None) -> None:
        """kv_cache: anonymous memory that nobody else uses a page of; None: there is nothing to give back."""
        self._kv_cache = kv_cache

    def fall_asleep(self) -> Iterator[int]:
        """See Dormant. The pages read as zeros afterwards, which is what an untouched pool holds."""
        if self._kv_cache is None:
            return
        page = mmap.PAGESIZE
        address = self._kv_cache.data_ptr()
        start, end = -(-address // page) * page, (address + self._kv_cache.nbytes) // page * page
        for piece in range(start, end, _MADVISE_BYTES):
            size = min(_MADVISE_BYTES, end - piece)
            yield _give_back_pages(piece, size)

    def wake(self) -> Iterator[int]:
        """See Dormant: pages come back as they are written."""
        return iter(())


class DeviceDormancy:
    """Of a model on a GPU. With CPU tensors it does the same, for tests."""

    def __init__(
        self,
        *,
        model: object,
        kv_cache: Tensor | None,
        steps: Steps | None,
        pin: bool = True,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """`model` is whatever reaches the weights' tensors by attributes, containers and closures."""
        self._model = model
        self._kv_cache = kv_cache
        self._steps = steps
        self._pin = pin
        self._chunk_bytes = chunk_bytes
        self._copy: _HostCopy | None = None
        self._sizes: list[tuple[UntypedStorage, int]] = []

    @torch.inference_mode()
    def fall_asleep(self) -> Iterator[int]:
        """See Dormant."""
        _synchronize()
        if self._steps is not None:
            self._steps.forget()
        kv = [] if self._kv_cache is None else [self._kv_cache.untyped_storage()]
        weights = storages_of(self._model, beside=kv)
        if self._copy is None:
            self._copy = _HostCopy(self._chunk_bytes, pin=self._pin)
            for storage in weights:
                for _ in self._copy.add(storage):
                    yield 0
            _synchronize()
        self._sizes = [(storage, storage.nbytes()) for storage in (*weights, *kv)]
        for storage, size in self._sizes:
            storage.resize_(0)
            yield size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # else it would stay with this process

    @torch.inference_mode()
    def wake(self) -> Iterator[int]:
        """See Dormant. Everything finds room before anything is copied."""
        assert self._copy is not None, "nothing sleeps"
        self._take_room()
        yield from self._copy.restore()
        if self._kv_cache is not None:
            # Stale slots are multiplied by zero: what lies there must be finite.
            self._kv_cache.view(torch.uint8).zero_()
            yield self._kv_cache.nbytes
        _synchronize()
        self._sizes = []
        if self._steps is not None:
            self._steps.prepare()

    def _take_room(self) -> None:
        try:
            for storage, size in self._sizes:
                storage.resize_(size)
        except RuntimeError as error:  # torch.OutOfMemoryError is one; a CPU's allocator raises the plain one
            for storage, _ in self._sizes:
                storage.resize_(0)
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
            needed = sum(size for _, size in self._sizes)
            raise WakeError(
                f"the device has no room for the {needed} bytes of weights and KV that this worker had before it slept: "
                "end what has taken them, and wake it again"
            ) from error


class _HostCopy:
    """Storages one behind the other in chunks of host memory."""

    def __init__(self, chunk_bytes: int, *, pin: bool) -> None:
        self._chunk_bytes = chunk_bytes
        self._pin = pin
        self._chunks: list[Tensor] = []
        self._used = chunk_bytes
        """Of the last chunk."""
        self._pieces: list[tuple[UntypedStorage, int, Tensor]] = []
        """(storage, offset in it, where those bytes are)"""

    def add(self, storage: UntypedStorage) -> Iterator[None]:
        """Copy it; yields after each piece."""
        source = _bytes_of(storage)
        offset = 0
        while offset < storage.nbytes():
            if self._used == self._chunk_bytes:
                self._chunks.append(torch.empty(self._chunk_bytes, dtype=torch.uint8, pin_memory=self._pin))
                self._used = 0
            size = min(storage.nbytes() - offset, self._chunk_bytes - self._used)
            kept = self._chunks[-1][self._used : self._used + size]
            kept.copy_(source[offset : offset + size], non_blocking=True)
            self._pieces.append((storage, offset, kept))
            self._used += size
            offset += size
            yield

    def restore(self) -> Iterator[int]:
        """Copy all of them back, into memory they have again; yields bytes."""
        for storage, offset, kept in self._pieces:
            _bytes_of(storage)[offset : offset + len(kept)].copy_(kept, non_blocking=True)
            yield len(kept)


def storages_of(root: object, beside: list[UntypedStorage]) -> list[UntypedStorage]:
    """The memory of every tensor that `root` reaches, each once, but for `beside`; not through modules, classes or globals.

    What it does not find merely stays on the device."""
    found: dict[int, UntypedStorage] = {}
    apart = {storage.data_ptr() for storage in beside}
    seen: dict[int, Any] = {}  # keeps them, lest another object get the number of one that is gone
    waiting: list[Any] = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            # What oneDNN packed has no storage, and is a CPU's.
            storage = None if item.layout != torch.strided else item.untyped_storage()
            if storage is not None and storage.resizable() and storage.data_ptr() and storage.data_ptr() not in apart:
                found.setdefault(storage.data_ptr(), storage)
        else:
            waiting.extend(_held_by(item))
    return list(found.values())


def _held_by(item: Any) -> Iterator[Any]:
    """What an object keeps alive by itself."""
    match item:
        case str() | bytes() | int() | float() | type() | types.ModuleType():
            return
        case dict():
            yield from item.values()
        case list() | tuple() | set() | frozenset():
            yield from item
        case functools.partial():
            yield from (item.func, item.args, item.keywords)
        case types.MethodType():
            yield from (item.__self__, item.__func__)
        case types.FunctionType():
            yield item.__defaults__ or ()
            for cell in item.__closure__ or ():
                with contextlib.suppress(ValueError):  # not filled yet
                    yield cell.cell_contents
        case _:
            yield getattr(item, "__dict__", None) or {}
            for kind in type(item).__mro__:
                slots = kind.__dict__.get("__slots__", ())
                for name in (slots,) if isinstance(slots, str) else slots:
                    yield getattr(item, name, None)


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _give_back_pages(address: int, size_bytes: int) -> int:
    """Bytes of them that were in memory. Raises OSError if the system does not take them."""
    libc = ctypes.CDLL(None, use_errno=True)
    start, size = ctypes.c_void_p(address), ctypes.c_size_t(size_bytes)
    in_memory = ctypes.create_string_buffer(size_bytes // mmap.PAGESIZE)
    if libc.mincore(start, size, in_memory) != 0 or libc.madvise(start, size, _MADV_DONTNEED) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return in_memory.raw.count(1) * mmap.PAGESIZE
