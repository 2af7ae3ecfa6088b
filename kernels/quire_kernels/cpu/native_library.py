"""The compiled C++ ops, loaded once for the process.

    library = native_library()              None where there is none: the caller then uses torch
    function = library.function("quire_x", (c_void_p, c_int64), None)

Calls leave the GIL while they run. Pointers are `tensor.data_ptr()`: the caller keeps the tensors alive and has checked dtypes, shapes and
strides, for C++ checks nothing. One thread at a time may call.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from quire_kernels.cpu.build import find_library

logger = logging.getLogger(__name__)


class NativeLibrary:
    """One loaded library and its team of threads."""

    def __init__(self, path: Path, isa: str) -> None:
        self.isa = isa
        self._dll = ctypes.CDLL(str(path))
        self._resize = self.function("quire_set_num_threads", (ctypes.c_int,), None)

    def function(self, name: str, arguments: Sequence[Any], result: Any) -> Callable[..., Any]:
        """The named extern "C" function, with its ctypes signature set."""
        found = self._dll[name]
        found.argtypes = list(arguments)
        found.restype = result
        return found

    def set_num_threads(self, num_threads: int) -> None:
        """Threads that compute, the caller's included."""
        self._resize(num_threads)


@cache
def native_library() -> NativeLibrary | None:
    """The library for this processor, compiled on first use; None without a compiler or AVX2. Logs which."""
    found = find_library()
    if found.path is None:
        logger.warning("cpu_ops=torch why=%r", found.why)
        return None
    try:
        library = NativeLibrary(found.path, found.isa)
    except OSError as error:
        logger.warning("cpu_ops=torch why=%r", str(error))
        return None
    logger.info("cpu_ops=%s source=%r", found.isa, found.why)
    return library
