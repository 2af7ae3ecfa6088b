"""Runs Triton kernels through Triton's interpreter, so their tests need no GPU. Must load before any `quire_kernels.gpu` module.

Triton 3.6's interpreter differs from a GPU in four ways that matter here, and they are mended below: it converts scalars in a way that
NumPy 2.4 refuses, multiplies bfloat16 and float8 matrices as if their bits were integers, truncates casts to those types, and leaves
float32 products to a BLAS which on some processors adds up a row in an order that depends on its place in the matrix.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype

from quire_kernels.cpu.build import ISAS, build_library, find_compiler, library_name, supported_isa
from quire_kernels.cpu.native_library import NativeLibrary

torch.set_num_threads(1)

TORCH_TYPES = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
}
BIT_TYPES = {8: torch.uint8, 16: torch.int16, 32: torch.int32}

_set_tensor_methods = interpreter._patch_lang_tensor
_dot = InterpreterBuilder.create_dot
_cast = InterpreterBuilder.cast_impl
_float_cast = InterpreterBuilder.create_fp_to_fp


def _mended_tensor_methods(tensor, scope):
    _set_tensor_methods(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _is_narrow(handle_type: tl.dtype) -> bool:
    return handle_type.scalar in (tl.bfloat16, tl.float8e4nv)


def _converted(handle: TensorHandle, target: tl.dtype) -> TensorHandle:
    """As a GPU does it: to nearest, ties to even; NaN stays NaN."""
    data = np.ascontiguousarray(handle.data)
    source = torch.from_numpy(data).view(TORCH_TYPES[handle.dtype.scalar])
    bits = source.to(TORCH_TYPES[target.scalar]).view(BIT_TYPES[target.scalar.primitive_bitwidth])
    return TensorHandle(bits.numpy().view(_get_np_dtype(target.scalar)), target.scalar)


def _mended_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    a, b = (_converted(x, tl.float32) if _is_narrow(x.dtype) else x for x in (a, b))
    if a.dtype.scalar is tl.float32 and b.dtype.scalar is tl.float32:
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(np.float32)
        return TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)
    return _dot(self, a, b, d, input_precision, max_num_imprecise_acc)


def _between_floats(src, dst_type) -> bool:
    kinds = (src.dtype.scalar, dst_type.scalar)
    return any(_is_narrow(kind) for kind in kinds) and all(kind in TORCH_TYPES for kind in kinds)


def _mended_cast(self, src, dst_type):
    return _converted(src, dst_type) if _between_floats(src, dst_type) else _cast(self, src, dst_type)


def _mended_float_cast(self, src, dst_type, rounding_mode):
    return (
        _converted(src, dst_type) if _between_floats(src, dst_type) else _float_cast(self, src, dst_type, rounding_mode)
    )


interpreter._patch_lang_tensor = _mended_tensor_methods
InterpreterBuilder.create_dot = _mended_dot
InterpreterBuilder.cast_impl = _mended_cast
InterpreterBuilder.create_fp_to_fp = _mended_float_cast


@pytest.fixture(scope="session", autouse=True)
def unset_memory_is_nan() -> Iterator[None]:
    """What nobody wrote is NaN, or the largest integer, in every run: a kernel that lets it through fails each time, and one that computes
    with it for nobody never stumbles over the bits that happen to lie there."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


BEST_ISA = supported_isa(Path("/proc/cpuinfo"))
NATIVE_CACHE = Path.home() / ".cache" / "quire" / "native"


@pytest.fixture(scope="session", params=ISAS[ISAS.index(BEST_ISA) :] if BEST_ISA else ())
def native_isa(request: pytest.FixtureRequest) -> NativeLibrary:
    """The C++ ops for each instruction set that this machine runs, each with its own team of two threads.

    Compiled once for a version of the sources."""
    path = NATIVE_CACHE / library_name(request.param)
    if not path.is_file():
        compiler = find_compiler()
        assert compiler is not None, "no C++ compiler: install g++"
        NATIVE_CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        build_library(compiler, request.param, path)
    library = NativeLibrary(path, request.param)
    library.set_num_threads(2)
    return library
