"""Runs Triton kernels through Triton's interpreter, so their tests need no GPU. Must load before any `quire_kernels.gpu` module.

Triton 3.6's interpreter differs from a GPU in three ways that matter here, and they are mended below: it converts scalars in a way that
NumPy 2.4 refuses, multiplies bfloat16 matrices as if their bits were integers, and truncates casts to bfloat16.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

torch.set_num_threads(1)

_set_tensor_methods = interpreter._patch_lang_tensor
_dot = InterpreterBuilder.create_dot
_cast = InterpreterBuilder.cast_impl
_float_cast = InterpreterBuilder.create_fp_to_fp


def _mended_tensor_methods(tensor, scope):
    _set_tensor_methods(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _widened(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _mended_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    return _dot(self, _widened(a), _widened(b), d, input_precision, max_num_imprecise_acc)


def _rounded_to_bfloat16(handle: TensorHandle) -> TensorHandle:
    """To nearest, ties to even; NaN stays NaN."""
    bits = handle.data.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = np.where(np.isnan(handle.data), (bits >> 16) | 0x40, rounded)
    return TensorHandle(rounded.astype(np.uint16), tl.bfloat16)


def _is_narrowing(src, dst_type) -> bool:
    return src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16


def _mended_cast(self, src, dst_type):
    return _rounded_to_bfloat16(src) if _is_narrowing(src, dst_type) else _cast(self, src, dst_type)


def _mended_float_cast(self, src, dst_type, rounding_mode):
    narrowing = _is_narrowing(src, dst_type)
    return _rounded_to_bfloat16(src) if narrowing else _float_cast(self, src, dst_type, rounding_mode)


interpreter._patch_lang_tensor = _mended_tensor_methods
InterpreterBuilder.create_dot = _mended_dot
InterpreterBuilder.cast_impl = _mended_cast
InterpreterBuilder.create_fp_to_fp = _mended_float_cast
