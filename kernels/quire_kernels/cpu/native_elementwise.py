"""Norms and gated activations in C++, for float32 and bfloat16. Contracts: quire_kernels.rms_norm and quire_kernels.silu_mul."""

from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import overload

import torch
from torch import Tensor

from quire_kernels.cpu.native_library import NativeLibrary
from quire_kernels.cpu.rms_norm import rms_norm_cpu
from quire_kernels.silu_mul import silu_mul_reference

_DTYPES = (torch.float32, torch.bfloat16)


class NativeElementwise:
    """The ops of one library; torch's for other dtypes. One thread at a time may call."""

    def __init__(self, library: NativeLibrary) -> None:
        p, i = c_void_p, c_int64
        self._rms_norm = library.function("quire_rms_norm", (p, i, p, p, p, c_float, p, i, i, c_int32), None)
        self._silu_mul = library.function("quire_silu_mul", (p, i, p, i, i, c_int32), None)

    @overload
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
    @overload
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The reference's roundings; the squares are summed in another order than torch's."""
        if x.dtype not in _DTYPES or weight.dtype != x.dtype:
            return rms_norm_cpu(x, weight, eps) if residual is None else rms_norm_cpu(x, weight, eps, residual)
        width = x.shape[-1]
        # A copy where the rows of more than two dimensions are not equally far apart.
        rows = x.reshape(-1, width)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        kept = None if residual is None else residual.data_ptr()
        assert residual is None or residual.is_contiguous()
        weight = weight.contiguous()
        self._rms_norm(
            rows.data_ptr(), rows.stride(0), kept, kept, weight.data_ptr(), eps, out.data_ptr(), rows.shape[0], width,
            x.dtype == torch.bfloat16,
        )  # fmt: skip
        return out if residual is None else (out, residual)

    def silu_mul(self, gate_up_TF: Tensor) -> Tensor:
        """One pass."""
        if gate_up_TF.dtype not in _DTYPES:
            return silu_mul_reference(gate_up_TF)
        if gate_up_TF.stride(1) != 1:
            gate_up_TF = gate_up_TF.contiguous()
        num_rows, width = gate_up_TF.shape[0], gate_up_TF.shape[1] // 2
        out = torch.empty(num_rows, width, dtype=gate_up_TF.dtype)
        is_bf16 = gate_up_TF.dtype == torch.bfloat16
        self._silu_mul(gate_up_TF.data_ptr(), gate_up_TF.stride(0), out.data_ptr(), num_rows, width, is_bf16)
        return out
